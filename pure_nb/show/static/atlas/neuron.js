// A neuron's page, and that of two: next and previous by key, and the part that the address names is marked.
(() => {
  "use strict";

  // With shift, since a letter alone would be in the way of whoever steers by voice.
  document.addEventListener("keydown", (event) => {
    const next = { ArrowRight: "next", ArrowLeft: "previous" }[event.key];
    if (!next || !event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest("input, select, textarea, dialog, [role=slider], [contenteditable]")) return;
    const steps = [...document.querySelectorAll(`button[aria-label="${next} neuron"]`)];
    (document.querySelector(`a[rel="${next.slice(0, 4)}"]`) ?? steps.at(-1))?.click();
  });

  document.querySelector("figure.explorer")?.addEventListener("explorer-shows", ({ detail: { strongest } }) => {
    document.querySelectorAll("#circuits thead [data-part]").forEach((head) => {
      head.prepend(strongest(head.dataset.part === "all" ? "" : head.dataset.part));
    });
  }, { once: true });

  const mark = () => {
    const part = location.hash.slice(1);
    document.querySelectorAll(".matrix [data-part]").forEach((cell) => cell.classList.toggle("marked", cell.dataset.part === part));
  };
  window.addEventListener("hashchange", mark);
  mark();
})();
