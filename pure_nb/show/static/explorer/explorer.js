// Explorers: sliders over pictures, and over neurons whose reference images are sorted into virtual neurons.
//
// A page holds <figure class="explorer" data-kind="pictures"> or data-kind="neuron"; what they show is beside the page.
// The data of a neuron is a script that calls pureNb.neuron, since a page that is opened from a disk may not read files.
(() => {
  "use strict";

  // seaborn's colour-blind palette; every part has its letter too.
  const COLOURS = [
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
  ];
  const SHORT = 6; // images of a row, until all are asked for
  const SVG = "http://www.w3.org/2000/svg";
  const letter = (part) => String.fromCharCode(65 + part);
  let number = 0;

  // ---- small helpers -------------------------------------------------------------------------------------------

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };

  const slider = (label, values, start, changed) => {
    const id = `explorer-${++number}`;
    const shown = make("span", { class: "explorer-value", "aria-hidden": "true" }); // the slider itself says it
    const input = make("input", { id, type: "range", min: 0, max: values.length - 1, step: 1 });
    input.value = start;
    const say = (text = values[input.value]) => {
      shown.textContent = text;
      input.setAttribute("aria-valuetext", text);
    };
    input.addEventListener("input", () => {
      say();
      changed();
    });
    say();
    const box = make("div", { class: "explorer-control" }, make("label", { for: id }, label), input, shown);
    return { box, get index() { return Number(input.value); }, say };
  };

  const choice = (label, values, changed) => {
    const id = `explorer-${++number}`;
    const input = make("select", { id }, ...values.map((value, index) => make("option", { value: index }, value)));
    input.addEventListener("change", changed);
    const box = make("div", { class: "explorer-control" }, make("label", { for: id }, label), input);
    return { box, get index() { return input.selectedIndex; } };
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
    const sliders = told.axes.map((axis) => slider(axis.label, axis.values, axis.start, show));
    const moving = sliders.filter((_, axis) => told.axes[axis].values.length > 1).map((one) => one.box);
    figure.prepend(make("div", { class: "explorer-controls" }, ...moving));
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
    if (!neuron.names.length || !ranks.length) return "";
    const count = new Map();
    for (const rank of ranks) count.set(neuron.label[rank], (count.get(neuron.label[rank]) || 0) + 1);
    const least = Math.max(0.05, neuron.known ? 0 : 2 / ranks.length);
    return [...count]
      .filter(([name, some]) => name >= 0 && some / ranks.length >= least)
      .sort((a, b) => b[1] - a[1] || a[0] - b[0])
      .map(([name, some]) => `${neuron.names[name]} ${Math.round((100 * some) / ranks.length)}%`)
      .join(", ");
  };

  // Labels are a string with a digit for each image, or a letter from the eleventh part on; "-" belongs to no part.
  const partOf = (own) => (own === "-" ? -1 : parseInt(own, 36));
  const members = (labels, part) => [...labels].flatMap((own, rank) => (partOf(own) === part ? [rank] : []));

  const tile = (neuron, root, whole, rank) => {
    const rows = Math.ceil(neuron.tiles / neuron.columns);
    const at = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0);
    const element = make("span", { class: "tile", "data-rank": rank, title: neuron.names.length ? neuron.names[neuron.label[rank]] || "" : undefined });
    element.style.backgroundImage = `url("${root}${whole ? neuron.whole : neuron.crops}")`;
    element.style.backgroundSize = `${100 * neuron.columns}% ${100 * rows}%`;
    element.style.backgroundPosition =
      `${at(rank % neuron.columns, neuron.columns)}% ${at(Math.floor(rank / neuron.columns), rows)}%`;
    return element;
  };

  const row = (neuron, root, whole, ranks, part, said, open, most) => {
    const shown = ranks.filter((rank) => rank < neuron.tiles);
    const name = part === null ? "all" : letter(part);
    const meant = meanings(neuron, ranks);
    const head = make("div", { class: "row-head" });
    if (part !== null) {
      const key = make("span", { class: "row-key", "aria-hidden": "true" });
      key.style.backgroundColor = COLOURS[part % COLOURS.length];
      head.append(key);
    }
    head.append(make("strong", {}, name), `, ${ranks.length} image${ranks.length === 1 ? "" : "s"}${said ? `, “${said}”` : ""}${meant ? `: ${meant}` : ""}`);
    const strip = make("div", { class: "tiles", role: "img", "aria-label": `Images of ${part === null ? "the whole neuron" : `part ${name}`}${meant ? `: ${meant}` : ""}` });
    const fill = (all) => strip.replaceChildren(...(all ? shown : shown.slice(0, most)).map((rank) => tile(neuron, root, whole, rank)));
    fill(open.has(name));
    if (shown.length > most) {
      const more = make("button", { type: "button", class: "row-more", "aria-expanded": String(open.has(name)) });
      const say = () => { more.textContent = open.has(name) ? "fewer" : `all ${shown.length}`; };
      more.addEventListener("click", () => {
        if (!open.delete(name)) open.add(name);
        more.setAttribute("aria-expanded", String(open.has(name)));
        say();
        fill(open.has(name));
      });
      say();
      head.append(" ", more);
    }
    const box = make("div", { class: "row" }, head, strip);
    if (part !== null) box.style.setProperty("--part", COLOURS[part % COLOURS.length]);
    return box;
  };

  const plane = (neuron, labels, text) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 1000 1000");
    svg.setAttribute("class", "plane");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", text);
    neuron.points.forEach(([x, y], rank) => {
      const own = labels[rank];
      const point = document.createElementNS(SVG, "circle");
      point.setAttribute("cx", 40 + 0.92 * x);
      point.setAttribute("cy", 40 + 0.92 * y);
      point.setAttribute("r", 15);
      point.setAttribute("data-rank", rank);
      point.setAttribute("fill", own === "-" ? "none" : COLOURS[partOf(own) % COLOURS.length]);
      svg.append(point);
    });
    return svg;
  };

  // A point and its image belong together: what the pointer is over is marked in both.
  const together = (view, neuron, root) => {
    const mark = (rank) => {
      view.querySelectorAll(".marked").forEach((element) => element.classList.remove("marked"));
      view.querySelector(".peek")?.remove();
      if (rank === undefined) return;
      view.querySelectorAll(`[data-rank="${rank}"]`).forEach((element) => element.classList.add("marked"));
    };
    view.addEventListener("pointerover", (event) => {
      const rank = event.target.closest?.("[data-rank]")?.dataset.rank;
      mark(rank);
      if (event.target.tagName !== "circle" || Number(rank) >= neuron.tiles) return;
      const peek = tile(neuron, root, false, Number(rank));
      peek.classList.add("peek");
      peek.style.left = `${Math.min(70, event.target.getAttribute("cx") / 10)}%`;
      peek.style.top = `${Math.min(70, event.target.getAttribute("cy") / 10)}%`;
      event.target.ownerSVGElement.parentElement.append(peek);
    });
    view.addEventListener("pointerleave", () => mark(undefined));
  };

  const neurons = async (figure) => {
    const { root, parts } = figure.dataset;
    const channels = figure.dataset.neurons.split(" ");
    const view = make("div", { class: "explorer-view" });
    const words = figure.querySelector(".explorer-words");
    const open = new Set();
    let latest = 0;
    let methods = [], method, count, look, which;

    const show = async () => {
      const ticket = ++latest;
      const channel = channels[which ? which.index : 0];
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
      let said = `Neuron ${channel}: its top-activating images`;
      view.replaceChildren();
      if (parts === "true") {
        const name = methods[method ? method.index : 0];
        const labels = neuron.parts[name][count.index];
        const k = Math.max(0, ...[...labels].map(partOf)) + 1;
        if (count.index === 0) count.say(`${neuron.counts[0]} (${k})`);
        const agreement = neuron.agreement?.[name][count.index];
        said = `Neuron ${channel}, ${k === 1 ? "left whole" : `split into ${k} parts`} by ${name}`;
        if (agreement !== undefined) said += `; agreement with the true objects (AMI) ${agreement.toFixed(2)}`;
        const rows = [row(neuron, root, whole, every, null, "", open, SHORT)];
        for (let part = 0; part < k && k > 1; part++) {
          const word = count.index === 0 && name === methods[0] ? neuron.part_labels?.[part] : ""; // the study's own parts
          rows.push(row(neuron, root, whole, members(labels, part), part, word, open, SHORT));
        }
        const drawn = make("div", { class: "plane-box" }, plane(neuron, labels, `${said}. Each point is a reference image; similar circuits lie close together.`));
        view.append(make("div", { class: "explorer-columns" }, drawn, make("div", { class: "rows" }, ...rows)));
      } else {
        const meant = meanings(neuron, every);
        if (meant) said += `. It answers to ${meant}`;
        view.append(make("div", { class: "rows" }, row(neuron, root, whole, every, null, "", open, whole ? 14 : 24)));
      }
      words.textContent = `${said}.`;
      together(view, neuron, root);
    };

    const start = Math.max(0, channels.indexOf(figure.dataset.start));
    let first;
    try {
      first = await load(`${root}data/${channels[start]}.js`);
    } catch (problem) {
      words.textContent = `The data of neuron ${channels[start]} can't be loaded: ${problem.message}.`;
      return;
    }
    const controls = make("div", { class: "explorer-controls" });
    if (channels.length > 1) controls.append((which = slider("neuron", channels, start, show)).box);
    if (parts === "true") {
      methods = Object.keys(first.parts);
      controls.append((count = slider("parts", first.counts, 0, show)).box);
      if (methods.length > 1) controls.append((method = choice("method", methods, show)).box);
      controls.append((look = choice("show", ["what it looks at", "whole pictures"], show)).box);
    }
    figure.prepend(controls, view);
    await show();
  };

  const start = () => {
    document.querySelectorAll("figure.explorer").forEach((figure) => {
      if (figure.dataset.ready) return;
      figure.dataset.ready = "true";
      if (figure.dataset.kind === "pictures") pictures(figure);
      else neurons(figure);
    });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
