// The widget manager asks MathJax 2's queue to typeset its labels; the book has MathJax 3, which has none.
(() => {
  "use strict";
  const fit = (mathjax) => {
    if (mathjax && !mathjax.Hub) mathjax.Hub = { Queue() {} };
    return mathjax;
  };
  let current = fit(window.MathJax);
  Object.defineProperty(window, "MathJax", {
    configurable: true,
    get: () => current,
    set: (mathjax) => {
      current = fit(mathjax);
    },
  });
})();

// Give every slider handle an accessible name: the label beside it. Widgets render late and may be redrawn, so watch.
(() => {
  "use strict";
  const name = (handle) => {
    if (handle.hasAttribute("aria-label")) return;
    const box = handle.closest(".widget-slider, .jupyter-widgets");
    const label = box && box.querySelector(".widget-label");
    const text = (label && label.textContent.trim()) || "slider";
    handle.setAttribute("aria-label", text);
  };
  const nameAll = () => document.querySelectorAll(".noUi-handle").forEach(name);
  document.addEventListener("DOMContentLoaded", () => {
    nameAll();
    if (!document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) return;
    new MutationObserver(nameAll).observe(document.body, { childList: true, subtree: true });
  });
})();
