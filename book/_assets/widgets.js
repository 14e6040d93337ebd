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
