// Explorers: sliders over pictures, and over neurons whose reference images are sorted into virtual neurons.
//
// A page holds <figure class="explorer" data-kind="pictures"> or data-kind="neuron"; what they show is beside the page.
// The data of a neuron is a script that calls pureNb.neuron, since a page that is opened from a disk may not read files.
// What is chosen stands in the address, behind the number of the explorer on its page: #1.neuron=22&1.parts=3
// In Jupyter the same program is a widget, with its data from a kernel and what is chosen in the widget's traits; it is
// a module there, and pureNb what it exports.
var pureNb = (() => {
  "use strict";

  const SHORT = 6; // images of a row, until all are asked for
  const SVG = "http://www.w3.org/2000/svg";
  const NONE = "none", SAME = "the same method", LOOKS = ["what it looks at", "whole pictures"];
  const letter = (part) => (part > 25 ? letter(Math.floor(part / 26) - 1) : "") + String.fromCharCode(65 + (part % 26));
  let number = 0;

  // ---- controls ------------------------------------------------------------------------------------------------

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };

  const button = (text, title, pressed) => {
    const sign = !/\w/.test(text); // words are their own name
    const element = make("button", { type: "button", class: "explorer-button", title, "aria-label": sign && title }, text);
    element.addEventListener("click", pressed);
    return element;
  };

  // Each control has a key, by which the address knows it, and a value; a value that it does not have is its start.
  const slider = (label, values, start, changed) => {
    const id = `explorer-${++number}`;
    const shown = make("span", { class: "explorer-value", "aria-hidden": "true" }); // the slider itself says it
    const input = make("input", { id, type: "range", min: 0, step: 1 });
    const say = () => {
      shown.textContent = values[input.value];
      input.setAttribute("aria-valuetext", values[input.value]);
    };
    const set = (value) => {
      const index = values.indexOf(value);
      input.value = index < 0 ? start : index;
      say();
    };
    input.addEventListener("input", () => {
      say();
      changed();
    });
    const refill = (...others) => {
      values.splice(0, values.length, ...others);
      input.max = values.length - 1;
    };
    refill(...values);
    set();
    const box = make("div", { class: "explorer-control" }, make("label", { for: id }, label), input, shown);
    return {
      box, key: label, set, refill, values,
      get index() { return Number(input.value); },
      get value() { return values[input.value]; },
    };
  };

  // A slider with all ways to one of many neurons: step by step, by chance, by its number.
  const picker = (label, values, start, changed) => {
    const one = slider(label, values, start, changed);
    const go = (value) => {
      one.set(value);
      changed();
    };
    const step = (by) => go(values[Math.min(values.length - 1, Math.max(0, one.index + by))]);
    const typed = make("input", { type: "number", class: "explorer-number", "aria-label": `number of the ${label}`, placeholder: "no." });
    typed.addEventListener("change", () => {
      const missing = !values.includes(typed.value);
      typed.setCustomValidity(missing ? `There are no pictures of ${label} ${typed.value} here. Some that are here: ${values.slice(0, 8).join(", ")}` : "");
      typed.reportValidity();
      if (!missing) go(typed.value);
    });
    const chance = () => go(values[Math.floor(Math.random() * values.length)]);
    one.of = (all) => { one.box.querySelector("label").textContent = values.length < all ? `${label}, ${values.length} of ${all.toLocaleString("en")}` : label; };
    one.box.classList.add("explorer-picker");
    one.box.append(
      button("‹", `previous ${label}`, () => step(-1)), button("›", `next ${label}`, () => step(1)),
      button("?", `a random ${label}`, chance), typed,
    );
    return one;
  };

  const choice = (label, values, changed) => {
    const id = `explorer-${++number}`;
    const input = make("select", { id }, ...values.map((value, index) => make("option", { value: index }, value)));
    input.addEventListener("change", changed);
    const box = make("div", { class: "explorer-control" }, make("label", { for: id }, label), input);
    return {
      box, key: label,
      get index() { return input.selectedIndex; },
      get value() { return values[input.selectedIndex]; },
      set(value) { input.selectedIndex = Math.max(0, values.indexOf(value)); },
    };
  };

  // Few values: all are seen, and one is pressed.
  const keys = (label, values, changed) => {
    const name = `explorer-${++number}`;
    const inputs = values.map((value) => make("input", { type: "radio", name, value, checked: value === values[0] }));
    const marks = inputs.map((input, index) => make("label", {}, input, make("span", {}, values[index])));
    const box = make("fieldset", { class: "explorer-control explorer-keys" }, make("legend", {}, label), ...marks);
    box.addEventListener("change", changed);
    return {
      box, key: label,
      get index() { return inputs.findIndex((input) => input.checked); },
      get value() { return values[this.index]; },
      set(value) { inputs[Math.max(0, values.indexOf(value))].checked = true; },
      say(text) { marks[0].lastChild.textContent = text; },
    };
  };

  // ---- what is chosen, in the address ----------------------------------------------------------------------------

  const explorers = []; // of this page: their place on it, controls, the values they start with, and what shows them
  let waiting;

  const written = (one, all = false) => one.controls
    .filter((control) => all || control.value !== one.start.get(control.key))
    .map((control) => `${one.place}.${encodeURIComponent(control.key)}=${encodeURIComponent(control.value)}`);
  const decoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch { // a link that was cut off
      return text;
    }
  };
  const read = () => new Map([...location.hash.matchAll(/(\d+\.[^=&]+)=([^&]*)/g)].map(([, key, value]) => [decoded(key), decoded(value)]));

  const choose = (one, known) => {
    for (const control of one.controls) control.set(known.get(`${one.place}.${control.key}`) ?? one.start.get(control.key));
  };

  // A slider that is drawn passes many values: what it is left at is an entry in the browser's history.
  const remember = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const now = [...explorers].sort((a, b) => a.place - b.place).flatMap((one) => written(one)).join("&");
      if (`#${now}` !== (location.hash || "#")) history.pushState({ explorers: true }, "", now ? `#${now}` : location.pathname + location.search);
    }, 300);
  };

  const restore = () => {
    clearTimeout(waiting);
    const known = read();
    for (const one of explorers) {
      const before = written(one, true).join();
      choose(one, known);
      if (before !== written(one, true).join()) one.show();
    }
  };
  // Called once its controls are made, and before they show anything.
  const enter = (figure, controls, show) => {
    const one = { controls, show, place: Number(figure.dataset.place), start: new Map(controls.map((control) => [control.key, control.value])) };
    const known = read();
    choose(one, known);
    explorers.push(one);
    if ([...known.keys()][0]?.startsWith(`${one.place}.`)) figure.scrollIntoView();
    return one;
  };

  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not from a disk, and not without leave
      const area = make("textarea", { class: "explorer-hidden", "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };

  const saved = (blob, name) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const linked = (one) => {
    const link = button("copy link", "copy a link to what is shown", async () => {
      await copied(`${location.href.split("#")[0]}#${written(one, true).join("&")}`);
      link.textContent = "copied";
      setTimeout(() => { link.textContent = "copy link"; }, 1500);
    });
    return link;
  };

  // The line below an explorer: what to do with what is seen.
  const tools = (...all) => make("div", { class: "explorer-tools" }, ...all);

  // ---- pictures: one file for each combination of values --------------------------------------------------------

  const pictures = (figure) => {
    const told = JSON.parse(figure.querySelector("script").textContent);
    const images = figure.querySelectorAll("img"); // one, or one for each theme
    const words = figure.querySelector(".explorer-words");
    const show = () => {
      const place = sliders.reduce((sum, one, axis) => sum * told.axes[axis].values.length + one.index, 0);
      const [file, text] = told.pictures[place];
      for (const image of images) {
        image.src = told.root + (image.className === "on-dark" ? "dark/" : "") + file;
        image.alt = text;
      }
      words.textContent = text;
    };
    const changed = () => {
      show();
      remember();
    };
    const sliders = told.axes.map((axis) => slider(axis.label, axis.values, axis.start, changed));
    const moving = sliders.filter((_, axis) => told.axes[axis].values.length > 1);
    figure.prepend(make("div", { class: "explorer-controls" }, ...moving.map((one) => one.box)));
    const one = enter(figure, moving, show);
    if (moving.length) words.after(tools(linked(one)));
    if (written(one).length) show();
  };

  // ---- neurons ---------------------------------------------------------------------------------------------------

  const arrived = new Map();
  const asked = new Map();
  const neuron = (data) => arrived.set(document.currentScript.src, data);

  const load = (url) => {
    const address = new URL(url, document.baseURI).href;
    if (!asked.has(address)) {
      asked.set(address, new Promise((resolve, reject) => {
        const script = make("script", { src: address });
        script.addEventListener("load", () => resolve(arrived.get(script.src)));
        script.addEventListener("error", () => {
          asked.delete(address);
          reject(new Error(`${address} can't be loaded`));
        });
        document.head.append(script);
      }));
    }
    return asked.get(address);
  };

  // Names that make up at least a share of the images, most frequent first, as Neuron.meanings gives them.
  const meanings = (neuron, ranks) => {
    if (!neuron.names.length || !ranks.length) return [];
    const count = new Map();
    for (const rank of ranks) count.set(neuron.label[rank], (count.get(neuron.label[rank]) || 0) + 1);
    const least = Math.max(0.05, neuron.known ? 0 : 2 / ranks.length);
    return [...count]
      .filter(([name, some]) => name >= 0 && some / ranks.length >= least)
      .sort((a, b) => b[1] - a[1] || a[0] - b[0])
      .map(([name, some]) => `${neuron.names[name]} ${Math.round((100 * some) / ranks.length)}%`);
  };

  // Labels are a string with a digit for each image, or a letter from the eleventh part on; "-" belongs to no part.
  const partOf = (own) => (own === "-" ? -1 : parseInt(own, 36));
  const members = (labels, part) => [...labels].flatMap((own, rank) => (partOf(own) === part ? [rank] : []));
  const partsOf = (labels) => Math.max(0, ...[...labels].map(partOf)) + 1;

  const called = (own) => (own === "-" ? "no part" : `part ${letter(partOf(own))}`);

  // What is known of one image, in words.
  const said = ({ neuron, labels, other, by, otherBy }, rank) => [
    `rank ${rank + 1}`, `activation ${neuron.activation[rank]}`, neuron.names[neuron.label[rank]],
    other ? `${called(labels[rank])} by ${by}, ${called(other[rank])} by ${otherBy}` : labels && partsOf(labels) > 1 ? called(labels[rank]) : "",
    `image ${neuron.sample[rank]}`, neuron.file[rank], neuron.credits?.[rank] && `by ${neuron.credits[rank]}`,
  ].filter(Boolean).join(", ");

  // Two methods are compared: what this one has in another part than the other.
  const differs = ({ labels, other }, rank) => Boolean(other) && labels[rank] !== other[rank];

  const UNITS = 1000, STEPS = 64; // to the side of an image on its sheet, and to that of the square of an outline

  const shape = (name, attributes, ...children) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // Where an image is on its sheet, which square of it is shown, and all that the neuron does not look at.
  const cut = (neuron, rank, whole) => {
    const [sheet, cell, ...own] = neuron.cuts[rank];
    const [file, columns, rows] = neuron.sheets[sheet];
    const [left, top, side] = whole ? neuron.whole : own;
    const x = UNITS * (cell % columns) + left, y = UNITS * Math.floor(cell / columns) + top;
    const over = [own[0] - left, own[1] - top, own[2] / STEPS]; // where the outline lies in the square
    return { file, side, x, y, width: UNITS * columns, height: UNITS * rows, over, dim: `M-9999-9999h19999v19999h-19999z${own[3]}` };
  };

  const tile = (state, rank, whole = state.whole, name = "span") => {
    const { neuron } = state;
    const { file, side, x, y, width, height, over, dim } = cut(neuron, rank, whole);
    const dimmed = shape("path", { d: dim, transform: `translate(${over[0]} ${over[1]}) scale(${over[2]})` });
    const looked = shape("svg", { viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" }, dimmed);
    const element = make(name, { class: "tile", "data-rank": rank, title: neuron.names[neuron.label[rank]] }, looked);
    element.style.backgroundImage = `url("${state.url(file)}")`;
    element.style.backgroundSize = `${(100 * width) / side}% ${(100 * height) / side}%`;
    element.style.backgroundPosition = `${(100 * x) / (width - side) || 0}% ${(100 * y) / (height - side) || 0}%`;
    return element;
  };

  // One image, large, both ways; with the arrow keys to the others of its row.
  const enlarge = (state, ranks, rank) => {
    const dialog = make("dialog", { class: "explorer-large", "aria-label": "One image" });
    const both = make("div", { class: "explorer-both" }), words = make("p", { "aria-live": "polite" });
    const show = (to) => {
      rank = to;
      both.replaceChildren(tile(state, rank, false), tile(state, rank, true));
      words.textContent = said(state, rank);
    };
    const step = (by) => show(ranks[(ranks.indexOf(rank) + by + ranks.length) % ranks.length]);
    const close = button("close", "close", () => dialog.close());
    const heat = button("heatmap", "show what the neuron looks at, or the image as it is", () => {
      heat.setAttribute("aria-pressed", String(!dialog.classList.toggle("bare")));
    });
    heat.setAttribute("aria-pressed", String(!state.bare));
    dialog.classList.toggle("bare", state.bare);
    dialog.append(both, words, button("‹", "previous image", () => step(-1)), button("›", "next image", () => step(1)), heat, close);
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) step(by);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
    dialog.addEventListener("close", () => dialog.remove());
    state.figure.append(dialog);
    dialog.showModal();
    show(rank);
    close.focus();
  };

  const row = (state, ranks, part, name, most, stable = null) => {
    const { neuron, open } = state;
    const shown = ranks.filter((rank) => rank < neuron.tiles);
    const own = part === null ? "all" : letter(part);
    const every = meanings(neuron, ranks);
    const meant = every.join(", ");
    const head = make("div", { class: "row-head" });
    if (part !== null) {
      const key = make("span", { class: "row-key", "aria-hidden": "true" });
      key.style.backgroundColor = neuron.colours.at(part);
      head.append(key);
    }
    const text = `, ${ranks.length} image${ranks.length === 1 ? "" : "s"}${name ? `, “${name}”${neuron.by_hand?.[part] ? " (by hand)" : ""}` : ""}${stable === null ? "" : `, stability ${stable.toFixed(2)}`}`;
    const short = every.length > 3 ? `${every.slice(0, 2).join(", ")} and ${every.length - 2} more` : meant;
    head.append(make("span", { class: "row-text", title: meant }, make("strong", {}, own), text + (short && `: ${short}`)));
    const strip = make("div", { class: "tiles", role: "group", "aria-label": `Images of ${part === null ? "the whole neuron" : `part ${own}`}${meant ? `: ${meant}` : ""}` });
    // One stop for the tab key a row; the arrow keys go on from there.
    const fill = (all) => strip.replaceChildren(...(all ? shown : shown.slice(0, most)).map((rank, place) => {
      const element = tile(state, rank, state.whole, "button");
      element.type = "button";
      element.tabIndex = place ? -1 : 0;
      element.setAttribute("aria-label", said(state, rank));
      if (differs(state, rank)) {
        element.classList.add("changed");
        element.append(make("span", { "aria-hidden": "true" }, `≠ ${state.other[rank] === "-" ? "–" : letter(partOf(state.other[rank]))}`));
      }
      element.addEventListener("click", () => enlarge(state, shown, rank));
      return element;
    }));
    strip.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key];
      if (to && document.activeElement[to]) document.activeElement[to].focus();
    });
    fill(open.has(own));
    if (shown.length > most) {
      const more = make("button", { type: "button", class: "row-more", "aria-expanded": String(open.has(own)) });
      const say = () => { more.textContent = open.has(own) ? "fewer" : `all ${shown.length}`; };
      more.addEventListener("click", () => {
        if (!open.delete(own)) open.add(own);
        more.setAttribute("aria-expanded", String(open.has(own)));
        say();
        fill(open.has(own));
      });
      say();
      head.append(more);
    }
    const box = make("div", { class: "row" }, head, strip);
    if (part !== null) box.style.setProperty("--part", neuron.colours.at(part));
    return box;
  };

  // ---- the plane: a point for each image ---------------------------------------------------------------------------

  const INNER = 0.84; // of the plane: pictures of the parts find room around the points

  const inPlane = ([x, y]) => [500 + INNER * (x - 500), 500 + INNER * (y - 500)];

  // For each part the picture nearest to its middle, put where it hides no point and no other picture, if there is
  // such a place: the nearest of a grid of them.
  const thumbs = (state, points) => {
    const side = 120, placed = [];
    for (let part = 0; part < partsOf(state.labels); part++) {
      const own = members(state.labels, part).filter((rank) => rank < state.neuron.tiles);
      if (!own.length) continue;
      const middle = [0, 1].map((axis) => own.reduce((sum, rank) => sum + points[rank][axis], 0) / own.length);
      const far = ([x, y]) => Math.hypot(x - middle[0], y - middle[1]);
      const nearest = own.reduce((best, rank) => (far(points[rank]) < far(points[best]) ? rank : best));
      let least = Infinity, at = [0, 0];
      for (let left = 0; left <= 1000 - side; left += 20) {
        for (let top = 0; top <= 1000 - side; top += 20) {
          const hidden = points.filter(([x, y]) => x > left - 18 && x < left + side + 18 && y > top - 18 && y < top + side + 18).length;
          const over = placed.filter((one) => Math.abs(one.left - left) < side + 10 && Math.abs(one.top - top) < side + 10).length;
          const cost = 400 * hidden + 1e5 * over + far([left + side / 2, top + side / 2]);
          if (cost < least) [least, at] = [cost, [left, top]];
        }
      }
      placed.push({ part, rank: nearest, left: at[0], top: at[1] });
    }
    return placed.map((one) => {
      const element = tile(state, one.rank, false);
      element.classList.add("thumb");
      element.style.cssText += `left: ${one.left / 10}%; top: ${one.top / 10}%; border-color: ${state.neuron.colours.at(one.part)}`;
      element.append(make("span", { "aria-hidden": "true" }, letter(one.part)));
      return element;
    });
  };

  const plane = (state, text) => {
    const { neuron, labels } = state;
    if (!neuron.points?.[state.plane]) return make("div", { class: "plane-side" }, make("div", { class: "plane" }), make("div", { class: "peek" }));
    const points = neuron.points[state.plane].map(inPlane);
    const svg = document.createElementNS(SVG, "svg");
    // As a slider over its images it can be walked through without a mouse, and says each.
    const attributes = { viewBox: "0 0 1000 1000", class: "plane", role: "slider", tabindex: 0, "aria-label": text, "aria-valuemin": 1, "aria-valuemax": points.length };
    for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
    points.forEach(([x, y], rank) => {
      const point = document.createElementNS(SVG, "circle");
      point.setAttribute("cx", x);
      point.setAttribute("cy", y);
      point.setAttribute("r", Math.min(15, 290 / Math.sqrt(points.length))); // as far apart as points_apart puts them
      point.setAttribute("data-rank", rank);
      if (differs(state, rank)) point.classList.add("changed");
      point.setAttribute("fill", labels[rank] === "-" ? "none" : neuron.colours.at(partOf(labels[rank])));
      svg.append(point);
    });
    const peek = make("div", { class: "peek" }, make("p", {}, "Point at an image, or go through them with the arrow keys."));
    const at = (rank) => {
      svg.setAttribute("aria-valuenow", rank + 1);
      svg.setAttribute("aria-valuetext", said(state, rank));
    };
    at(0);
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      state.mark((Number(svg.getAttribute("aria-valuenow")) - 1 + by + points.length) % points.length);
    });
    state.marked = (rank) => {
      at(rank);
      const picture = rank < neuron.tiles ? [tile(state, rank, false)] : [];
      peek.replaceChildren(...picture, make("p", {}, said(state, rank)));
    };
    const pictured = partsOf(labels) > 1 ? thumbs(state, points) : [];
    return make("div", { class: "plane-side" }, make("div", { class: "plane-box" }, svg, ...pictured), peek);
  };

  // A point and its image belong together: what the pointer is over, or was last, is marked in both.
  const together = (view, state) => {
    state.mark = (rank) => {
      view.querySelectorAll(".marked").forEach((element) => element.classList.remove("marked"));
      view.querySelectorAll(`:is(circle, .tiles .tile)[data-rank="${rank}"]`).forEach((element) => element.classList.add("marked"));
      state.marked?.(rank);
    };
    for (const kind of ["pointerover", "focusin"]) {
      view.addEventListener(kind, (event) => {
        const rank = event.target.closest?.("circle, .tiles .tile")?.dataset.rank;
        if (rank !== undefined) state.mark(Number(rank));
      });
    }
  };

  // ---- what is seen, to take away ----------------------------------------------------------------------------------

  const table = (state) => {
    const quoted = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const { neuron, labels, other, otherBy } = state;
    const part = (own, rank) => (own && own[rank] !== "-" ? letter(partOf(own[rank])) : "");
    const head = ["rank", "image", "file", "activation", "name", "part", ...(other ? [`part by ${otherBy}`] : []), "x", "y"];
    const lines = neuron.sample.map((image, rank) => [
      rank + 1, image, neuron.file[rank], neuron.activation[rank], neuron.names[neuron.label[rank]] ?? "", part(labels, rank),
      ...(other ? [part(other, rank)] : []), ...(neuron.points?.[state.plane]?.[rank] ?? ["", ""]),
    ]);
    return [head, ...lines].map((line) => line.map(quoted).join(",") + "\n").join("");
  };

  const arrives = (source) => new Promise((resolve, reject) => {
    const image = new Image();
    image.addEventListener("load", () => resolve(image));
    image.addEventListener("error", reject);
    image.src = source;
  });

  // The plane and the rows as one picture, twice as fine as on the screen, in the page's own colours.
  const drawn = async (state, view) => {
    const whole = view.getBoundingClientRect(), page = getComputedStyle(document.body);
    const canvas = make("canvas", { width: 2 * whole.width, height: 2 * whole.height + 60 });
    const pen = canvas.getContext("2d");
    const ink = getComputedStyle(view).color;
    pen.scale(2, 2);
    pen.fillStyle = page.backgroundColor === "rgba(0, 0, 0, 0)" ? "#fff" : page.backgroundColor;
    pen.fillRect(0, 0, whole.width, whole.height + 30);
    const place = (element) => {
      const box = element.getBoundingClientRect();
      const places = [box.left - whole.left, box.top - whole.top + 30, box.width, box.height];
      return places.map((at) => Math.round(2 * at) / 2); // or pictures would be blurred
    };
    const write = (text, x, y, size) => {
      pen.fillStyle = ink;
      pen.font = `${size}px system-ui, sans-serif`;
      pen.fillText(text, x, y);
    };
    write(state.words, 8, 20, 14);
    for (const point of view.querySelectorAll("circle")) {
      const [x, y, width] = place(point);
      pen.beginPath();
      pen.arc(x + width / 2, y + width / 2, width / 2, 0, 2 * Math.PI);
      if (point.getAttribute("fill") !== "none") {
        pen.fillStyle = point.getAttribute("fill");
        pen.fill();
      }
      pen.strokeStyle = ink;
      pen.lineWidth = 0.5;
      pen.stroke();
    }
    for (const element of view.querySelectorAll(".row-text")) write(element.textContent, ...place(element).slice(0, 2).map((at, axis) => at + 12 * axis), 12);
    for (const element of view.querySelectorAll(".row-key")) {
      pen.fillStyle = element.style.backgroundColor;
      pen.fillRect(...place(element));
    }
    for (const element of view.querySelectorAll(".tiles .tile, .thumb")) {
      const { side, x, y, width, over, dim } = cut(state.neuron, Number(element.dataset.rank), state.whole && !element.matches(".thumb"));
      const image = await arrives(getComputedStyle(element).backgroundImage.slice(5, -2));
      const fine = image.naturalWidth / width, [to, down, wide] = place(element);
      pen.drawImage(image, fine * x, fine * y, fine * side, fine * side, to, down, wide, wide);
      if (!state.bare) {
        pen.save();
        pen.beginPath();
        pen.rect(to, down, wide, wide);
        pen.clip();
        pen.translate(to, down);
        pen.scale(wide / side, wide / side);
        pen.translate(over[0], over[1]);
        pen.scale(over[2], over[2]);
        pen.fillStyle = "#fff9";
        pen.fill(new Path2D(dim), "evenodd");
        pen.strokeStyle = "#000";
        pen.lineWidth = side / wide / over[2];
        pen.stroke(new Path2D(dim));
        pen.restore();
      }
      if (element.className.includes("thumb")) {
        pen.strokeStyle = element.style.borderColor;
        pen.lineWidth = 3;
        pen.strokeRect(to, down, wide, wide);
      }
    }
    return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture"))), "image/png"));
  };

  // ---- where neurons come from: files beside the page, or a kernel ------------------------------------------------

  const fromPage = (figure) => {
    const { root, neurons, of, start, parts, whole, pages } = figure.dataset;
    const listed = neurons.split(" "), first = Math.max(0, listed.indexOf(start));
    let one;
    const get = async (channel) => {
      try {
        return await load(`${root}data/${channel}.js`);
      } catch (problem) {
        throw new Error(`The data of neuron ${channel} can't be loaded: ${problem.message}.`);
      }
    };
    return {
      neurons: listed, of: () => Number(of), start: first, layers: [], split: parts === "true", whole: whole === "true", load: get, remember,
      async told() {
        const known = await get(listed[first]);
        return { methods: Object.keys(known.parts), counts: known.counts.slice(1) };
      },
      url: (path) => root + path,
      page: (channel) => pages && `${root}${channel}.html`,
      enter(controls, show) { one = enter(figure, controls, show); },
      tools: () => [linked(one)],
    };
  };

  // Of each control the widget's trait, and what is chosen as its value, and back.
  const TRAITS = {
    neuron: ["neuron", Number, String],
    parts: ["parts", (chosen) => Number(chosen) || 0, (count) => (count ? String(count) : "auto")],
    method: ["method", String, String],
    beside: ["beside", (chosen) => (chosen === NONE ? "" : chosen), (name) => name || NONE],
    plane: ["plane", (chosen) => (chosen === SAME ? "" : chosen), (name) => name || SAME],
    show: ["whole", (chosen) => chosen === LOOKS[1], (whole) => LOOKS[Number(whole)]],
    heatmap: ["heatmap", (chosen) => chosen === "on", (heatmap) => (heatmap ? "on" : "off")],
    layer: ["layer", String, String],
  };

  const fromKernel = (model) => {
    const { layers, methods, counts, split } = model.get("_fixed");
    const known = new Map(), files = new Map(), waiting = new Map();
    let controls = [], show, wanted, last;
    const now = () => `${model.get("layer")}/${model.get("neuron")}`;

    // Data come in pieces, with the pictures that they name.
    model.on("msg:custom", (told, buffers) => {
      if (told.why) return;
      const at = `${told.layer}/${told.neuron}`, { resolve, reject } = waiting.get(at) ?? {};
      waiting.delete(at);
      if (told.problem) {
        wanted = undefined;
        known.delete(at);
        (reject ?? (() => show?.(told.problem)))(new Error(told.problem));
        return;
      }
      told.files.forEach((path, place) => {
        const name = `${told.layer}/${path}`, before = files.get(name);
        files.set(name, URL.createObjectURL(new Blob([buffers[place]], { type: `image/${path.split(".").pop()}` })));
        if (before) setTimeout(() => URL.revokeObjectURL(before), 1000); // it is shown at the moment
      });
      const data = { layer: told.layer, ...known.get(at) };
      for (const [name, value] of Object.entries(told.data)) {
        if (name === "done") data.done = [...(data.done ?? []), ...value];
        else data[name] = value?.constructor === Object ? { ...data[name], ...value } : value;
      }
      known.set(at, data);
      if (told.data.done && at === now()) wanted = undefined;
      if (resolve) resolve(data);
      else if (at === now()) show?.();
    });

    const bar = make("progress", { max: 1, "aria-label": "progress" }), text = make("span");
    const stop = button("Stop", "what is finished is kept", () => model.send({ stop: true }));
    const line = make("div", { class: "explorer-doing" }, text, bar, stop);
    const say = () => {
      const { what = "", part, left } = model.get("_doing");
      line.hidden = !what;
      bar.hidden = stop.hidden = part === undefined;
      if (part) bar.value = part;
      else bar.removeAttribute("value");
      const time = left > 90 ? `${Math.round(left / 60)} min` : `${Math.ceil(left)} s`;
      text.textContent = what + (part ? `, ${Math.round(100 * part)}%` : "") + (left > 1 ? `, ${time} left` : "");
    };
    const set = (control, value) => {
      if (control.key === "neuron" && !control.values.includes(value)) control.refill(...control.values, value);
      control.set(value);
    };
    const listed = () => model.get("_listed").neurons.map(String);

    return {
      layers, split, whole: model.get("whole"), neurons: listed(), of: () => model.get("_listed").of, start: 0, page: () => "",
      told: async () => ({ methods, counts }),
      load(channel, methods) {
        const at = now(), data = known.get(at), has = data?.done ?? [];
        const asks = { layer: model.get("layer"), neuron: model.get("neuron"), methods, has, pictures: Boolean(data?.done) };
        const text = JSON.stringify(asks), lacks = !asks.pictures || methods.some((name) => !has.includes(name));
        // What is looked at is told also where it is known: those beside it are not.
        if (lacks ? text !== wanted : at !== last) {
          [wanted, last] = [text, at];
          model.send(asks);
        }
        return data ?? new Promise((resolve, reject) => waiting.set(at, { resolve, reject }));
      },
      url: (path, { layer }) => files.get(`${layer}/${path}`),
      enter(all, shows) {
        [controls, show] = [all, shows];
        for (const control of controls) {
          const [trait, , shown] = TRAITS[control.key];
          set(control, shown(model.get(trait)));
          model.on(`change:${trait}`, () => {
            const value = shown(model.get(trait));
            if (control.value === value) return;
            set(control, value);
            show();
          });
        }
        model.on("change:_listed", () => {
          const which = controls.find((control) => control.key === "neuron");
          which.refill(...listed());
          set(which, String(model.get("neuron")));
          show();
        });
        model.on("change:_doing", say);
        say();
      },
      remember() {
        for (const control of controls) {
          const [trait, chosen] = TRAITS[control.key];
          model.set(trait, chosen(control.value));
        }
        model.save_changes();
      },
      tools: () => [line],
      close: () => files.forEach((address) => URL.revokeObjectURL(address)),
    };
  };

  // ---- neurons, wherever they come from ----------------------------------------------------------------------------

  const neurons = async (figure, from) => {
    const view = make("div", { class: "explorer-view" });
    const words = figure.querySelector(".explorer-words");
    const open = new Set(), openBeside = new Set();
    let latest = 0;
    let methods, counts, layer, method, count, look, heat, which, beside, place, state;

    const fail = (text) => {
      figure.removeAttribute("aria-busy");
      view.replaceChildren(); // rather than the pictures of something else
      words.textContent = text;
    };

    // One method's parts, each in a row; of two that are compared without that of the whole neuron.
    const column = (own, most) => {
      const { neuron, labels } = own;
      const rows = own.other ? [make("p", { class: "rows-head" }, `by ${own.by}`)] : [row(own, neuron.sample.map((_, rank) => rank), null, "", SHORT)];
      for (let part = 0; labels && partsOf(labels) > 1 && part < partsOf(labels); part++) {
        const known = count.index === 0 && own.by === methods[0]; // the study's own parts
        const word = known ? neuron.part_labels?.[part] : "";
        const stable = known ? neuron.stability?.[part] ?? null : null;
        const ranks = members(labels, part);
        if (ranks.length) rows.push(row(own, ranks, part, word, SHORT, stable));
      }
      const box = make("div", { class: "rows" }, ...rows);
      box.style.setProperty("--rows", most - Boolean(own.other)); // room for as many as there can be, so that the page stands still
      return box;
    };

    const split = (channel, by, otherBy) => {
      const { neuron } = state, labelsBy = (name) => neuron.parts?.[name]?.[count.index];
      const labels = state.labels = labelsBy(by) ?? null;
      if (!labels) {
        state.words += "; its parts are not known yet";
        return [plane(state, ""), column(state, counts.at(-1))];
      }
      const other = state.other = labelsBy(otherBy) ?? null;
      count.say(`${neuron.counts[0]} (${partsOf(neuron.parts[by][0])})`); // chosen by the study, or given
      const agreement = neuron.agreement?.[by][count.index];
      const some = new Set(labels.replaceAll("-", "")).size; // a letter may be left out: see relettered
      state.words = `Neuron ${channel}, ${some < 2 ? "left whole" : `split into ${some} parts`} by ${by}`;
      if (agreement !== undefined) state.words += `; agreement with the true objects (AMI) ${agreement.toFixed(2)}`;
      if (other) {
        const apart = neuron.sample.filter((_, rank) => differs(state, rank)).length;
        state.words += apart ? `; ${apart} of ${labels.length} images, marked ≠, are in another part by ${otherBy}` : `; all images are in the same parts by ${otherBy}`;
      } else if (otherBy) state.words += `; the parts by ${otherBy} are not known yet`;
      const most = 1 + Math.max(...[by, otherBy].flatMap((name) => (neuron.parts[name] ?? []).map(partsOf)));
      const near = state.plane === methods[0] ? "similar circuits lie" : `those that are similar by ${state.plane} lie`;
      const drawn = plane(state, `${state.words}. Each point is a reference image; ${near} close together.`);
      const columns = [column(state, most)];
      if (other) columns.push(column({ ...state, labels: other, other: labels, by: otherBy, otherBy: by, open: openBeside }, most));
      return [drawn, ...columns];
    };

    const show = async (problem) => {
      const ticket = ++latest;
      which?.of(from.of());
      if (problem) return fail(problem);
      const channel = which ? which.value : from.neurons[0];
      const by = method?.value ?? methods[0];
      const otherBy = beside?.index && beside.value !== by ? beside.value : "";
      const placed = place?.index ? place.value : by;
      let neuron;
      figure.setAttribute("aria-busy", "true");
      try {
        neuron = await from.load(channel, from.split ? [...new Set([by, otherBy, placed].filter(Boolean))] : []);
      } catch (problem) {
        if (ticket === latest) fail(problem.message);
        return;
      }
      if (ticket !== latest) return; // the slider has moved on
      figure.removeAttribute("aria-busy");
      const whole = look ? look.index === 1 : from.whole;
      const bare = heat?.index === 1;
      view.classList.toggle("bare", bare);
      state = {
        figure, neuron, bare, url: (path) => from.url(path, neuron), whole, open, labels: null, other: null, by, otherBy, plane: placed,
        words: `Neuron ${channel}: its top-activating images`,
      };
      const columns = [];
      if (from.split) columns.push(...split(channel, by, otherBy));
      else {
        const every = neuron.sample.map((_, rank) => rank), meant = meanings(neuron, every).join(", ");
        if (meant) state.words += `. It answers to ${meant}`;
        columns.push(make("div", { class: "rows" }, row(state, every, null, "", whole ? 14 : 24)));
      }
      view.replaceChildren(make("div", { class: "explorer-columns" }, ...columns));
      words.textContent = `${state.words}.`;
      figure.querySelector(".explorer-own")?.setAttribute("href", from.page(channel));
      together(view, state);
      // For what else a page tells of the neuron: with the strongest image of a part of the study's own, or of all for
      // "", if there is a picture of it.
      const strongest = (own) => {
        const rank = own ? [...neuron.parts[methods[0]][0]].findIndex((part) => letter(partOf(part)) === own) : 0;
        return rank < neuron.tiles ? tile(state, rank, false) : "";
      };
      figure.dispatchEvent(new CustomEvent("explorer-shows", { detail: { neuron, strongest } }));
    };
    const changed = () => {
      from.remember();
      return show();
    };

    try {
      ({ methods, counts } = await from.told());
    } catch (problem) {
      fail(problem.message);
      return;
    }
    if (from.layers.length > 1) layer = choice("layer", from.layers, changed);
    if (from.neurons.length > 1 || layer) which = picker("neuron", from.neurons, from.start, changed);
    if (from.split) {
      count = keys("parts", ["auto", ...counts], changed);
      if (methods.length > 1) {
        method = choice("method", methods, changed);
        beside = choice("beside", [NONE, ...methods], changed);
        place = choice("plane", [SAME, ...methods], changed);
      }
      look = choice("show", LOOKS, changed);
      heat = keys("heatmap", ["on", "off"], changed);
    }
    const controls = [which, layer, count, method, beside, place, look, heat].filter(Boolean);
    const others = controls.filter((control) => control !== which).map((control) => control.box);
    // The picker sticks to the top of the window for as long as the figure that it is in is there.
    figure.prepend(...(which ? [which.box] : []), make("div", { class: "explorer-controls" }, ...others), view);
    from.enter(controls, show);
    const more = [
      button("table", "download a table (CSV) of these images", () => saved(new Blob([table(state)], { type: "text/csv" }), `neuron-${state.neuron.channel}.csv`)),
      button("picture", "download a picture (PNG) of what is shown", async () => {
        try {
          saved(await drawn(state, view), `neuron-${state.neuron.channel}.png`);
        } catch { // a canvas that holds pictures from a disk is not given out
          words.textContent = "A browser makes no picture of a page opened from disk; it does from a server: python -m http.server";
        }
      }),
    ];
    if (from.page("")) more.push(make("a", { class: "explorer-own", href: "" }, "the neuron's page"));
    words.after(tools(...from.tools(), ...more));
    await show();
  };

  // ---- on a page, and in Jupyter -----------------------------------------------------------------------------------

  const start = () => {
    document.querySelectorAll("figure.explorer").forEach((figure, place) => {
      if (figure.dataset.place) return;
      figure.dataset.place = place + 1;
      if (figure.dataset.kind === "pictures") pictures(figure);
      else neurons(figure, fromPage(figure));
    });
  };
  if (document.currentScript) { // which a module has not
    // A link to a heading is none of the explorers' doing, and changes nothing in them.
    history.replaceState({ ...history.state, explorers: true }, "");
    window.addEventListener("popstate", (event) => {
      if (event.state?.explorers || read().size) restore();
    });
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }

  const render = ({ model, el }) => {
    const { split, caption } = model.get("_fixed");
    // JupyterLab has the arrow keys for its cells.
    const figure = make(
      "figure", { class: "explorer", "data-kind": "neuron", "data-whole": String(!split && model.get("whole")), "data-lm-suppress-shortcuts": true },
      make("p", { class: "explorer-words", "aria-live": "polite" }), ...(caption ? [make("figcaption", {}, caption)] : []),
    );
    el.append(figure);
    const from = fromKernel(model);
    neurons(figure, from);
    return from.close;
  };

  return { neuron, render, make, letter };
})();
