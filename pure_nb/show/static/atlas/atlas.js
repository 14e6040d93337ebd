// The table of all neurons: sorted by any column, and searched.
(() => {
  "use strict";
  const table = document.getElementById("neurons");
  const body = table.tBodies[0];
  const rows = [...body.rows];

  const value = (row, column, kind) => {
    const cell = row.cells[column];
    return kind === "number" ? Number(cell.dataset.value) : cell.textContent.trim();
  };

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const kind = head.dataset.sort;
    if (!kind) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending" && kind === "number" && column > 0;
      const order = down || (kind === "text" && head.getAttribute("aria-sort") === "ascending") ? -1 : 1;
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order < 0 ? "descending" : "ascending");
      rows.sort((a, b) => {
        const [one, two] = [value(a, column, kind), value(b, column, kind)];
        return order * (kind === "number" ? one - two : one.localeCompare(two));
      });
      body.append(...rows);
    });
  });

  const search = document.getElementById("search");
  const found = document.getElementById("found");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const number = row.cells[0].dataset.value;
      // A number means the neuron of that number, not every figure of the row.
      row.hidden = !words.every((word) => (/^\d+$/.test(word) ? number === word : text.includes(word)));
      count += !row.hidden;
    }
    found.textContent = words.length ? `${count} of ${rows.length} neurons` : "";
  });
  search.parentElement.hidden = false;
})();
