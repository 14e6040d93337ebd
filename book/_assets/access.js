// What the theme leaves out for those who use a keyboard or a screen reader.
(() => {
  "use strict";
  const each = (selector, change) => document.querySelectorAll(selector).forEach(change);

  // What is drawn for a screen is too small to read on a phone; the style makes it larger there.
  const widen = () => each(".cell_output figure > img", (img) => img.classList.toggle("wide", img.getAttribute("width") > 600));

  // What is printed in columns stays in them.
  const columns = /\S {2,}\S/;

  // What scrolls can be scrolled by the keyboard, and nothing else is stopped at.
  const reach = () =>
    each(".pst-scrollable-table-container, .cell_output, div.math, mjx-container", (box) => {
      const scrolls = box.scrollWidth > box.clientWidth && ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
      if (scrolls) box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    });

  document.addEventListener("DOMContentLoaded", () => {
    // The list says that its entries are items of it.
    each(".citation-list > .citation", (entry) => entry.setAttribute("role", "listitem"));
  });
  addEventListener("load", async () => {
    // Buttons are called what is written on them.
    each("summary[aria-label], .search-button-field[aria-label]", (button) => button.removeAttribute("aria-label"));
    each(".cell_output .stream pre", (text) => text.classList.toggle("prose", !columns.test(text.textContent)));
    widen();
    reach();
    await window.MathJax?.startup?.promise;
    reach();
  });
  addEventListener("resize", reach);
  document.addEventListener("click", () => requestAnimationFrame(reach));
  document.addEventListener("toggle", reach, true);
})();
