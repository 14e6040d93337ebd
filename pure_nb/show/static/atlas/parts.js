// Parts of neurons, each with a small picture out of one sheet; and the search by meaning, where a page has its form.
(() => {
  "use strict";

  const root = document.currentScript.src.replace(/parts\.js.*$/, "");
  const arrived = {}, asked = {};

  // Data are scripts, since a page that is opened from a disk may not read files.
  const load = (name) => asked[name] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${root}data/${name}.js`;
    script.addEventListener("load", () => resolve(arrived[name]));
    script.addEventListener("error", () => reject(new Error(`${script.src} can't be loaded`)));
    document.head.append(script);
  });

  const sprite = (parts, place) => {
    const { columns, sheet } = parts, rows = Math.ceil(parts.channel.length / columns);
    const element = document.createElement("span"), at = (step, count) => `${count > 1 ? (100 * step) / (count - 1) : 0}%`;
    element.className = "sprite";
    element.style.backgroundImage = `url("${root}${sheet}")`;
    element.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    element.style.backgroundPosition = `${at(place % columns, columns)} ${at(Math.floor(place / columns), rows)}`;
    return element;
  };

  const letter = (part) => (part > 25 ? letter(Math.floor(part / 26) - 1) : "") + String.fromCharCode(65 + (part % 26));
  const named = (parts, place) => `${parts.channel[place]} ${letter(parts.part[place])}`;

  const item = (parts, place, text = "") => {
    const line = document.createElement("li"), link = document.createElement("a"), words = document.createElement("span");
    const name = document.createElement("b");
    name.textContent = named(parts, place);
    words.append(name, ` ${text}`);
    link.href = `${root}${parts.channel[place]}.html`;
    link.dataset.place = place;
    link.append(sprite(parts, place), words);
    line.append(link);
    return line;
  };

  window.pureNbParts = { take: (name, data) => { arrived[name] = data; }, load, item, letter, named };

  // Lists that the page was written with get their pictures.
  for (const link of document.querySelectorAll("[data-sprite]")) {
    load("parts").then((parts) => link.prepend(sprite(parts, Number(link.dataset.sprite))));
  }

  // ---- search by meaning -----------------------------------------------------------------------------------------

  const form = document.querySelector(".meaning");
  if (!form) return;
  const input = form.querySelector("input"), told = form.querySelector("p"), list = form.querySelector("ol");

  // The word itself, or the first that begins with what is typed, or holds it.
  const wordFor = (words, typed) => {
    const lower = words.map((word) => word.toLowerCase());
    const place = [(word) => word === typed, (word) => word.startsWith(typed), (word) => word.includes(typed)]
      .map((fits) => lower.findIndex(fits)).find((found) => found >= 0);
    return place ?? -1;
  };

  // What else the page can do with the parts: the index filters its table, the map marks them.
  const pass = (found, parts, text) => {
    window.pureNbMap?.mark(found);
    window.pureNbIndex?.only(found && [...new Set(found.map((place) => parts.channel[place]))], text);
  };

  const search = async () => {
    const typed = input.value.trim().toLowerCase();
    const [parts, words] = await Promise.all([load("parts"), load("words")]);
    if (typed !== input.value.trim().toLowerCase()) return; // something else by now
    const place = typed ? wordFor(words.words, typed) : -1;
    list.replaceChildren();
    if (place < 0) {
      told.textContent = typed ? `None of the ${words.words.length} words here is like “${typed}”; pure-nb search takes any word.` : "";
      pass(null, parts, "");
      return;
    }
    const near = words.near[place], sure = words.sure[place];
    told.textContent = `“${words.words[place]}”: its nearest parts by ${words.by}, with their cosine beyond that of all crops; `
      + `${sure} ${sure === 1 ? "stands" : "stand"} out from all others.`;
    const found = near.filter((_, at) => at % 2 === 0);
    found.forEach((part, at) => {
      const line = item(parts, part, (near[2 * at + 1] / 1000).toFixed(3));
      if (at >= sure) line.firstChild.classList.add("less-sure");
      list.append(line);
    });
    pass(found, parts, words.words[place]);
  };

  const ready = async () => {
    const { words } = await load("words");
    const options = words.map((word) => Object.assign(document.createElement("option"), { value: word }));
    form.querySelector("datalist").replaceChildren(...options);
  };
  input.addEventListener("focus", ready, { once: true });
  input.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
})();
