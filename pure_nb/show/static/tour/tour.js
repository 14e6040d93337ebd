// A tour: one step at a time, by buttons, arrow keys and swipes.
(() => {
  "use strict";

  const FAR = 40; // pixels of a swipe

  const enter = (tour) => {
    const steps = [...tour.querySelectorAll(".tour-step")];
    const bar = document.createElement("div"), told = document.createElement("span");
    let now = 0, from = null;

    const show = (to) => {
      now = Math.min(steps.length - 1, Math.max(0, to));
      steps.forEach((step, place) => step.classList.toggle("now", place === now));
      told.textContent = `${now + 1} of ${steps.length}`;
      back.setAttribute("aria-disabled", now === 0);
      next.setAttribute("aria-disabled", now === steps.length - 1);
    };
    const button = (text, by) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.addEventListener("click", () => show(now + by));
      return made;
    };
    const back = button("← Back", -1), next = button("Next →", 1);
    told.setAttribute("aria-live", "polite");
    bar.className = "tour-bar";
    bar.append(back, told, next);
    tour.prepend(bar);
    tour.classList.add("live");
    show(0);

    tour.addEventListener("keydown", (event) => {
      const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("pre")) return;
      event.preventDefault();
      show(to);
    });
    tour.addEventListener("touchstart", ({ touches: [touch, ...others] }) => {
      from = others.length ? null : touch; // two fingers enlarge the page
    }, { passive: true });
    tour.addEventListener("touchend", ({ changedTouches: [touch], target }) => {
      const right = from && touch.clientX - from.clientX, down = from && touch.clientY - from.clientY;
      from = null;
      if (Math.abs(right) > FAR && Math.abs(right) > 2 * Math.abs(down) && !target.closest("pre")) show(now - Math.sign(right));
    });
  };

  document.querySelectorAll("figure.tour:not(.live)").forEach(enter);
})();
