"""The papers' methods: tensors and arrays in, arrays out."""
