// Explorers: sliders over pictures, and over neurons whose reference images are sorted into virtual neurons.
//
// A page holds <figure class="explorer" data-kind="pictures"> or data-kind="neuron"; what they show is beside the page.
// The data of a neuron is a script that calls pureNb.neuron, since a page that is opened from a disk may not read files.
// What is chosen stands in the address, behind the number of the explorer on its page: #1.neuron=22&1.parts=3
(() => {
  "use strict";

  const SHORT = 6; // images of a row, until all are asked for
  const SVG = "http://www.w3.org/2000/svg";
  const letter = (part) => String.fromCharCode(65 + part);
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
    const input = make("input", { id, type: "range", min: 0, max: values.length - 1, step: 1 });
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
    set();
    const box = make("div", { class: "explorer-control" }, make("label", { for: id }, label), input, shown);
    return { box, key: label, set, get index() { return Number(input.value); }, get value() { return values[input.value]; } };
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
  // A link to a heading is none of the explorers' doing, and changes nothing in them.
  history.replaceState({ ...history.state, explorers: true }, "");
  window.addEventListener("popstate", (event) => {
    if (event.state?.explorers || read().size) restore();
  });

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

  // The line below an explorer: what to do with what is seen.
  const tools = (one, ...more) => {
    const link = button("copy link", "copy a link to what is shown", async () => {
      await copied(`${location.href.split("#")[0]}#${written(one, true).join("&")}`);
      link.textContent = "copied";
      setTimeout(() => { link.textContent = "copy link"; }, 1500);
    });
    return make("div", { class: "explorer-tools" }, link, ...more);
  };

  // ---- pictures: one file for each combination of values --------------------------------------------------------

  const pictures = (figure) => {
    const told = JSON.parse(figure.querySelector("script").textContent);
    const image = figure.querySelector("img");
    const words = figure.querySelector(".explorer-words");
    const show = () => {
      const place = sliders.reduce((sum, one, axis) => sum * told.axes[axis].values.length + one.index, 0);
      const [file, text] = told.pictures[place];
      image.src = told.root + file;
      image.alt = text;
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
    if (moving.length) words.after(tools(one));
    if (written(one).length) show();
  };

  // ---- neurons ---------------------------------------------------------------------------------------------------

  const arrived = new Map();
  const asked = new Map();
  window.pureNb = { neuron: (data) => arrived.set(document.currentScript.src, data) };

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

  // What is known of one image, in words.
  const said = (neuron, labels, rank) => [
    `rank ${rank + 1}`, `activation ${neuron.activation[rank]}`, neuron.names[neuron.label[rank]],
    labels && partsOf(labels) > 1 ? (labels[rank] === "-" ? "no part" : `part ${letter(partOf(labels[rank]))}`) : "", `image ${neuron.sample[rank]}`,
  ].filter(Boolean).join(", ");

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
      words.textContent = said(state.neuron, state.labels, rank);
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

  const row = (state, ranks, part, name, most) => {
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
    const text = `, ${ranks.length} image${ranks.length === 1 ? "" : "s"}${name ? `, “${name}”` : ""}`;
    const short = every.length > 3 ? `${every.slice(0, 2).join(", ")} and ${every.length - 2} more` : meant;
    head.append(make("span", { class: "row-text", title: meant }, make("strong", {}, own), text + (short && `: ${short}`)));
    const strip = make("div", { class: "tiles", role: "group", "aria-label": `Images of ${part === null ? "the whole neuron" : `part ${own}`}${meant ? `: ${meant}` : ""}` });
    // One stop for the tab key a row; the arrow keys go on from there.
    const fill = (all) => strip.replaceChildren(...(all ? shown : shown.slice(0, most)).map((rank, place) => {
      const element = tile(state, rank, state.whole, "button");
      element.type = "button";
      element.tabIndex = place ? -1 : 0;
      element.setAttribute("aria-label", said(neuron, state.labels, rank));
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
    const points = neuron.points.map(inPlane);
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
      point.setAttribute("fill", labels[rank] === "-" ? "none" : neuron.colours.at(partOf(labels[rank])));
      svg.append(point);
    });
    const peek = make("div", { class: "peek" }, make("p", {}, "Point at an image, or go through them with the arrow keys."));
    const at = (rank) => {
      svg.setAttribute("aria-valuenow", rank + 1);
      svg.setAttribute("aria-valuetext", said(neuron, labels, rank));
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
      peek.replaceChildren(...picture, make("p", {}, said(neuron, labels, rank)));
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
    const lines = state.neuron.points.map((point, rank) => [
      rank + 1, state.neuron.sample[rank], state.neuron.activation[rank], state.neuron.names[state.neuron.label[rank]] ?? "",
      state.labels && state.labels[rank] !== "-" ? letter(partOf(state.labels[rank])) : "", ...point,
    ]);
    return [["rank", "image", "activation", "name", "part", "x", "y"], ...lines].map((line) => line.map(quoted).join(",") + "\n").join("");
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

  const neurons = async (figure) => {
    const { root, parts } = figure.dataset;
    const channels = figure.dataset.neurons.split(" ");
    const view = make("div", { class: "explorer-view" });
    const words = figure.querySelector(".explorer-words");
    const open = new Set();
    let latest = 0;
    let methods = [], method, count, look, heat, which, state;

    const show = async () => {
      const ticket = ++latest;
      const channel = which ? which.value : channels[0];
      let neuron;
      try {
        neuron = await load(`${root}data/${channel}.js`);
      } catch (problem) {
        words.textContent = `The data of neuron ${channel} can't be loaded: ${problem.message}.`;
        return;
      }
      if (ticket !== latest) return; // the slider has moved on
      const whole = look ? look.index === 1 : figure.dataset.whole === "true";
      const every = neuron.points.map((_, rank) => rank);
      const bare = heat?.index === 1;
      view.classList.toggle("bare", bare);
      state = { figure, neuron, url: (path) => root + path, whole, bare, open, labels: null, words: `Neuron ${channel}: its top-activating images` };
      const rows = [];
      let drawn = [], most = 0;
      if (parts === "true") {
        const name = methods[method ? method.index : 0];
        const labels = state.labels = neuron.parts[name][count.index];
        const k = partsOf(labels);
        count.say(`auto (${partsOf(neuron.parts[name][0])})`);
        const agreement = neuron.agreement?.[name][count.index];
        const some = new Set(labels.replaceAll("-", "")).size; // a letter may be left out: see relettered
        state.words = `Neuron ${channel}, ${some < 2 ? "left whole" : `split into ${some} parts`} by ${name}`;
        if (agreement !== undefined) state.words += `; agreement with the true objects (AMI) ${agreement.toFixed(2)}`;
        rows.push(row(state, every, null, "", SHORT));
        for (let part = 0; part < k && k > 1; part++) {
          const word = count.index === 0 && name === methods[0] ? neuron.part_labels?.[part] : ""; // the study's own parts
          const own = members(labels, part);
          if (own.length) rows.push(row(state, own, part, word, SHORT));
        }
        drawn = [plane(state, `${state.words}. Each point is a reference image; similar circuits lie close together.`)];
        most = 1 + Math.max(...neuron.parts[name].map(partsOf));
      } else {
        const meant = meanings(neuron, every).join(", ");
        if (meant) state.words += `. It answers to ${meant}`;
        rows.push(row(state, every, null, "", whole ? 14 : 24));
      }
      const box = make("div", { class: "rows" }, ...rows);
      box.style.setProperty("--rows", most); // room for as many as there can be, so that the page stands still
      view.replaceChildren(make("div", { class: "explorer-columns" }, ...drawn, box));
      words.textContent = `${state.words}.`;
      figure.querySelector(".explorer-own")?.setAttribute("href", `${root}${channel}.html`);
      together(view, state);
    };
    const changed = () => {
      remember();
      return show();
    };

    const start = Math.max(0, channels.indexOf(figure.dataset.start));
    let first;
    try {
      first = await load(`${root}data/${channels[start]}.js`);
    } catch (problem) {
      words.textContent = `The data of neuron ${channels[start]} can't be loaded: ${problem.message}.`;
      return;
    }
    if (channels.length > 1) which = picker("neuron", channels, start, changed);
    if (parts === "true") {
      methods = Object.keys(first.parts);
      count = keys("parts", ["auto", ...first.counts.slice(1)], changed);
      if (methods.length > 1) method = choice("method", methods, changed);
      look = choice("show", ["what it looks at", "whole pictures"], changed);
      heat = keys("heatmap", ["on", "off"], changed);
    }
    const controls = [which, count, method, look, heat].filter(Boolean);
    const others = controls.filter((control) => control !== which).map((control) => control.box);
    // The picker sticks to the top of the window for as long as the figure that it is in is there.
    figure.prepend(...(which ? [which.box] : []), make("div", { class: "explorer-controls" }, ...others), view);
    const one = enter(figure, controls, show);
    const more = [
      button("table", "download a table (CSV) of these images", () => saved(new Blob([table(state)], { type: "text/csv" }), `neuron-${state.neuron.channel}.csv`)),
      button("picture", "download a picture (PNG) of what is shown", async () => {
        try {
          saved(await drawn(state, view), `neuron-${state.neuron.channel}.png`);
        } catch { // a canvas that holds pictures from a disk is not given out
          words.textContent = "A browser gives no picture of a page that is opened from the disk; it does from a server: python -m http.server";
        }
      }),
    ];
    if (figure.dataset.pages) more.push(make("a", { class: "explorer-own", href: "" }, "the neuron's page"));
    words.after(tools(one, ...more));
    await show();
  };

  const start = () => {
    document.querySelectorAll("figure.explorer").forEach((figure, place) => {
      if (figure.dataset.place) return;
      figure.dataset.place = place + 1;
      if (figure.dataset.kind === "pictures") pictures(figure);
      else neurons(figure);
    });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
