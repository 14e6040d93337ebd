// The index of an atlas: a table of thousands of neurons, or of pairs of parts of two networks, of which only the rows
// that are seen are in the page.
//
// data/index.js calls pureNb.index with the table, since a page that is opened from a disk may not read files. What is
// searched, filtered, sorted and shown stands in the address: #search=umbrella&parts=3&sort=-score&columns=k,score
// Other scripts of the page can show some neurons only: pureNbIndex.only([3, 22], "near the umbrella").
(() => {
  "use strict";

  const [find, box, table, search] = ["find", "box", "neurons", "search"].map((id) => document.getElementById(id));
  const [above, body, below] = table.tBodies;
  const make = (name, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...children);
    return element;
  };

  // ---- columns -------------------------------------------------------------------------------------------------

  const digits = (count) => (value) => (value === null ? "–" : value.toFixed(count).replace(/^-(0\.0*)$/, "$1"));
  const part = (name) => (name === "all" ? "" : `${name} `);
  const joined = (one) => one?.join(" ") ?? "";
  const COLUMNS = { // by the names in the data: the head, the width, and what stands in a cell and in a CSV
    neuron: { head: "neuron", width: "5rem", kind: "number", text: String, link: (row) => `${row.neuron}.html` },
    thumb: { head: "strongest images", width: "306px", strip: "neuron", none: "never active" },
    what: { head: "pair", width: "5.5rem", kind: "text", text: String },
    one: { head: "A", width: "4.5rem", kind: "text", text: joined, link: ({ one }) => one && `A/${one[0]}.html#${one[1]}` },
    images_one: { head: "images of A", width: "306px", strip: "one", none: "" },
    other: { head: "B", width: "4.5rem", kind: "text", text: joined, link: ({ other }) => other && `B/${other[0]}.html#${other[1]}` },
    images_other: { head: "images of B", width: "306px", strip: "other", none: "" },
    pictures: { head: "alike by pictures", width: "5.2rem", kind: "number", text: (value) => digits(2)(value) },
    circuits: { head: "alike by circuits", width: "5.2rem", kind: "number", text: (value) => digits(2)(value) },
    says_one: { head: "A answers to", width: "9.8rem", kind: "text", text: String },
    says_other: { head: "B answers to", width: "9.8rem", kind: "text", text: String },
    k: { head: "parts", width: "4rem", kind: "number", text: String },
    sizes: { head: "images of each", width: "8rem", text: (value) => value },
    score: { head: "score", width: "5.5rem", kind: "number", text: digits(2) },
    p: { head: "p", width: "5rem", kind: "number", text: digits(3) },
    q: { head: "q", width: "4.5rem", kind: "number", text: digits(3) },
    strongest: { head: "strongest activation", width: "6.5rem", kind: "number", text: digits(1) },
    ami: { head: "agreement with the objects (AMI)", width: "8rem", kind: "number", text: digits(2) },
    meanings: { head: "answers to", width: "14rem", kind: "text", text: (value) => value },
    named: { head: "called", width: "13rem", kind: "text", text: (value) => value.map(([name, word, own]) => `${part(name)}“${word}”${own ? " (by hand)" : ""}`).join(", ") },
    notes: { head: "notes by hand", width: "14rem", kind: "text", text: (value) => value.map(([name, text]) => part(name) + text).join("; ") },
    classes: { head: "relevant to", width: "14rem", kind: "text", text: (value) => value.join(", ") },
  };
  const ASIDE = ["sizes", "p", "ami", "classes"]; // shown only if asked for
  const FIXED = table.dataset.fixed.split(","); // always shown
  const { noun, sort: USUALLY } = table.dataset;

  const thumbnail = ([file, at]) => {
    const image = make("img", { className: "strip-image", src: file, width: 288, height: 48, loading: "lazy", alt: "" });
    image.style.objectPosition = `0 ${at}%`;
    return image;
  };

  const cell = (row, key) => {
    const { link: leads, strip, text, none } = COLUMNS[key];
    if (leads) return leads(row) ? make("a", { href: leads(row), tabIndex: -1 }, text(row[key])) : "–";
    if (!strip) {
      const said = text(row[key]);
      return make("div", { title: said.length > 30 ? said : "" }, said);
    }
    if (!row[key]) return none;
    const link = make("a", { href: COLUMNS[strip].link(row), tabIndex: -1 }, thumbnail(row[key]));
    link.setAttribute("aria-hidden", "true");
    return link;
  };

  // ---- what is asked for, in the address -----------------------------------------------------------------------

  const KEYS = [...[...find.elements].map(({ name }) => name).filter(Boolean), "sort", "columns", "only", "of"];
  let asked = {}; // of these keys those that are not as at first
  let all = [], shown = [], usual = [], kept = [], at = 0, waiting;

  const fields = [...find.elements].filter((field) => KEYS.includes(field.name));
  const written = () => {
    const params = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const key of KEYS) { // what else stands there is another script's
      if (asked[key]) params.set(key, asked[key]);
      else params.delete(key);
    }
    return params.toString();
  };
  const remember = () => {
    clearTimeout(waiting);
    const now = written();
    if (`#${now}` !== (location.hash || "#")) history.pushState(null, "", now ? `#${now}` : location.pathname + location.search);
  };
  const restore = () => {
    if (location.hash && !location.hash.includes("=")) return; // it leads to a heading
    const params = new URLSearchParams(location.hash.slice(1));
    asked = Object.fromEntries(KEYS.map((key) => [key, params.get(key) ?? ""]));
    for (const field of fields) field.value = asked[field.name];
    if (fields.some((field) => field !== search && asked[field.name])) find.querySelector("details").open = true;
    columned();
    show();
  };
  // Who types or drags passes many states: what is left at is an entry in the browser's history.
  const change = (changes) => {
    Object.assign(asked, changes);
    show();
    clearTimeout(waiting);
    waiting = setTimeout(remember, 300);
  };

  // ---- which neurons, in which order ---------------------------------------------------------------------------

  const collator = new Intl.Collator(undefined, { numeric: true });
  const matched = () => all.filter((row) => !row.by || row.by === (asked.by || all[0].by)); // in one of the ways
  const chosen = () => { // but for their scores, which the histogram is of
    const words = asked.search.toLowerCase().split(/\s+/).filter(Boolean);
    const only = asked.only && new Set(asked.only.split(",").map(Number));
    const called = { yes: (row) => row.named.length, no: (row) => !row.named.length, hand: (row) => row.notes.length || row.named.some(([, , own]) => own) }[asked.named];
    return matched().filter((row) =>
      (!only || only.has(row.neuron)) &&
      // A number means the neuron of that number, not every figure of the row.
      words.every((word) => (/^\d+$/.test(word) ? row.numbers.includes(Number(word)) : row.words.includes(word))) &&
      (!asked.parts || row.k === Number(asked.parts)) &&
      (!called || called(row)) &&
      (!asked.what || row.what === asked.what) &&
      (!asked.dead || (row.thumb === null) === (asked.dead === "yes")) &&
      (!asked.class || row.classes.includes(asked.class)) &&
      (!asked.q || (row.q !== null && row.q <= Number(asked.q))));
  };
  const within = ({ brushed: score }) => (!asked.from && !asked.to) || (score !== null && (!asked.from || score >= Number(asked.from)) && (!asked.to || score <= Number(asked.to)));
  const sorted = (rows) => {
    const key = asked.sort.replace("-", ""), way = asked.sort.startsWith("-") ? -1 : 1;
    if (!COLUMNS[key]?.kind) return rows;
    const value = (row) => (COLUMNS[key].kind === "text" ? COLUMNS[key].text(row[key]) || null : row[key]);
    const valued = rows.map((row) => [value(row), row]);
    const compare = COLUMNS[key].kind === "text" ? collator.compare : (one, other) => one - other;
    // What is not known comes last either way.
    valued.sort(([one], [other]) => (one === null) - (other === null) || (one === null ? 0 : way * compare(one, other)));
    return valued.map(([, row]) => row);
  };

  // ---- the histogram of scores ---------------------------------------------------------------------------------

  const scores = document.getElementById("scores");
  const BINS = 40;
  let least = 0, most = 1; // a score is below 0 where parts that were asked for are less clear than draws
  const bars = Array.from({ length: BINS }, (_, bin) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ x: 10 * bin, width: 9 })) bar.setAttribute(key, value);
    scores.append(bar);
    return bar;
  });
  const bin = (score) => Math.min(BINS - 1, Math.floor((BINS * (score - least)) / (most - least)));
  const edge = (place) => least + (place * (most - least)) / BINS;
  const histogram = (rows) => {
    const counts = new Array(BINS).fill(0);
    for (const row of rows) if (row.brushed !== null) counts[bin(row.brushed)]++;
    const highest = Math.sqrt(Math.max(1, ...counts));
    bars.forEach((bar, place) => {
      const height = (58 * Math.sqrt(counts[place])) / highest;
      bar.setAttribute("y", 60 - height);
      bar.setAttribute("height", height);
      bar.classList.toggle("out", Boolean((asked.from && edge(place + 1) <= Number(asked.from)) || (asked.to && edge(place) >= Number(asked.to))));
    });
  };
  let held = null;
  const brushed = (event) => {
    const { left, width } = scores.getBoundingClientRect();
    const place = Math.max(0, Math.min(BINS - 1, Math.floor((BINS * (event.clientX - left)) / width)));
    held ??= place;
    const [first, last] = [Math.min(held, place), Math.max(held, place) + 1];
    const rounded = (number) => String(Number(edge(number).toFixed(4)));
    const [from, to] = [first ? rounded(first) : "", last < BINS ? rounded(last) : ""];
    [find.elements.from.value, find.elements.to.value] = [from, to];
    change({ from, to });
  };
  scores.addEventListener("pointerdown", (event) => {
    scores.setPointerCapture(event.pointerId);
    brushed(event);
  });
  scores.addEventListener("pointermove", (event) => held !== null && brushed(event));
  for (const end of ["pointerup", "pointercancel"]) scores.addEventListener(end, () => { held = null; });

  // ---- the rows that are seen ----------------------------------------------------------------------------------

  const AROUND = 6; // rows above and below them
  const drawn = new Map(); // by their place
  const lines = new Map(); // that were drawn once, by their neuron
  let high = 60;

  const tall = (part, rows) => part.firstChild.style.setProperty("height", `${rows * high}px`);
  const line = (place) => {
    const neuron = shown[place];
    if (!lines.has(neuron)) {
      const row = make("tr", {}, ...kept.map((key) => make(key === FIXED[0] ? "th" : "td", { className: `of-${key}` }, cell(neuron, key))));
      kept.forEach((key, column) => { row.cells[column].dataset.head = COLUMNS[key].head; });
      row.cells[0].scope = "row";
      lines.set(neuron, row);
    }
    const row = lines.get(neuron);
    row.setAttribute("aria-rowindex", place + 2);
    row.querySelector("a").tabIndex = place === at ? 0 : -1; // of the fixed columns one leads to a neuron
    return row;
  };
  const draw = () => {
    const first = Math.max(0, Math.min(Math.floor(box.scrollTop / high) - AROUND, shown.length - 1));
    const last = Math.min(shown.length, Math.ceil((box.scrollTop + innerHeight) / high) + AROUND); // it is never higher
    for (const [place, row] of drawn) {
      if (place >= first && place < last) continue;
      if (row.contains(document.activeElement)) box.focus({ preventScroll: true }); // or the keys would be lost
      row.remove();
      drawn.delete(place);
    }
    let next = body.firstChild; // rows that stay are not touched
    for (let place = first; place < last; place++) {
      const row = drawn.get(place);
      if (row) next = row.nextSibling;
      else drawn.set(place, body.insertBefore(line(place), next));
    }
    tall(above, first);
    tall(below, shown.length - last);
  };
  const fresh = () => {
    const own = body.contains(document.activeElement);
    body.replaceChildren();
    drawn.clear();
    draw();
    if (own) box.focus({ preventScroll: true });
  };
  const show = () => {
    const rows = chosen();
    shown = sorted(rows.filter(within));
    at = 0;
    box.scrollTop = 0;
    histogram(rows);
    fresh();
    table.setAttribute("aria-rowcount", shown.length + 1);
    const count = matched().length;
    document.getElementById("found").textContent = shown.length < count ? `${shown.length} of ${count} ${noun}` : "";
    document.getElementById("all").hidden = shown.length === count;
    document.getElementById("takes").textContent = `of the ${shown.length} ${noun} that are shown, with all columns`;
    const chip = document.getElementById("only");
    chip.hidden = !asked.only;
    chip.replaceChildren(`only ${asked.of || "some neurons"}`, make("button", { type: "button", title: "show all again", onclick: () => change({ only: "", of: "" }) }, "✕"));
    const sort = asked.sort || USUALLY;
    for (const head of table.tHead.rows[0].cells) {
      if (sort.replace("-", "") === head.dataset.key) head.setAttribute("aria-sort", sort.startsWith("-") ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  };
  const measured = () => { // of another width the rows are of another height
    const now = body.rows[0]?.offsetHeight;
    if (!now || now === high) return draw();
    box.scrollTop *= now / high;
    high = now;
    return draw();
  };

  // ---- columns that are chosen ---------------------------------------------------------------------------------

  const columned = () => {
    lines.clear();
    const wished = asked.columns ? asked.columns.split(",") : usual;
    const offered = [...document.querySelectorAll("#columns input")];
    for (const input of offered) input.checked = wished.includes(input.value);
    const shows = [...FIXED, ...offered.filter((input) => input.checked).map((input) => input.value)];
    kept = Object.keys(COLUMNS).filter((key) => shows.includes(key));
    table.tHead.rows[0].replaceChildren(...kept.map((key) => {
      const { head, kind } = COLUMNS[key];
      const button = () => make("button", { type: "button", onclick: () => {
        const sort = asked.sort || USUALLY;
        const down = kind === "number" && key !== "neuron"; // the largest of a number comes first
        change({ sort: sort.replace("-", "") === key ? (sort.startsWith("-") ? key : `-${key}`) : (down ? `-${key}` : key) });
      } }, head);
      const made = make("th", { scope: "col", className: `of-${key}` }, kind ? button() : head);
      made.dataset.key = key;
      made.style.width = COLUMNS[key].width;
      return made;
    }));
    table.style.setProperty("--texts", kept.filter((key) => !FIXED.includes(key) && (COLUMNS[key].kind === "text" || key === "sizes")).length);
    for (const spacer of [above, below]) spacer.replaceChildren(make("tr", {}, make("td", { colSpan: kept.length })));
  };

  // ---- what is taken along -------------------------------------------------------------------------------------

  const saved = (text, kind, name) => {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const columnsOf = (row) => Object.keys(COLUMNS).filter((key) => key in row && !COLUMNS[key].strip);
  const exact = (row, key) => (COLUMNS[key].kind === "number" ? row[key] ?? "" : COLUMNS[key].text(row[key]));
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const csv = () => {
    const keys = columnsOf(all[0]);
    return [keys, ...shown.map((row) => keys.map((key) => exact(row, key)))].map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
  };
  const json = () => JSON.stringify(shown.map((row) => Object.fromEntries(columnsOf(row).map((key) => [key, row[key]]))), null, 1);
  const copied = async () => {
    remember();
    try {
      await navigator.clipboard.writeText(location.href);
      document.getElementById("takes").textContent = "The link is copied.";
    } catch { // not everywhere allowed
      document.getElementById("takes").textContent = `The link: ${location.href}`;
    }
  };

  // ---- keys and the like ---------------------------------------------------------------------------------------

  const go = (place) => {
    if (!shown.length) return;
    drawn.get(at)?.querySelector("a").setAttribute("tabindex", -1);
    at = Math.max(0, Math.min(shown.length - 1, place));
    const room = box.clientHeight - table.tHead.offsetHeight;
    if (at * high < box.scrollTop) box.scrollTop = at * high;
    else if ((at + 1) * high > box.scrollTop + room) box.scrollTop = (at + 1) * high - room;
    draw();
    const link = drawn.get(at).querySelector("a");
    link.tabIndex = 0;
    link.focus({ preventScroll: true });
  };
  box.addEventListener("keydown", (event) => {
    if (event.target.closest("thead") || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(box.clientHeight / high) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    go((event.target === box ? Math.ceil(box.scrollTop / high) - Math.sign(by) : at) + by); // it starts at what is seen
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select, textarea")) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "ArrowDown" && event.target === search) {
      event.preventDefault();
      go(0);
    }
  });
  box.addEventListener("scroll", draw, { passive: true });
  addEventListener("resize", measured);
  find.addEventListener("submit", (event) => event.preventDefault());
  find.addEventListener("input", (event) => KEYS.includes(event.target.name) && change({ [event.target.name]: event.target.value }));
  find.addEventListener("reset", () => change(Object.fromEntries(KEYS.filter((key) => !["sort", "columns"].includes(key)).map((key) => [key, ""]))));
  document.getElementById("columns").addEventListener("change", () => {
    const wished = [...document.querySelectorAll("#columns input:checked")].map((input) => input.value).join(",");
    asked.columns = wished === usual.join(",") ? "" : wished || FIXED[0];
    columned();
    change({});
  });
  document.getElementById("link").addEventListener("click", copied);
  document.getElementById("csv").addEventListener("click", () => saved(csv(), "text/csv", `${noun}.csv`));
  document.getElementById("json").addEventListener("click", () => saved(json(), "application/json", `${noun}.json`));
  addEventListener("popstate", restore);
  addEventListener("pagehide", () => history.replaceState({ top: box.scrollTop }, "")); // who comes back is where they were

  // ---- the data ------------------------------------------------------------------------------------------------

  window.pureNb ??= {};
  window.pureNb.index = ({ columns, rows, classes = [] }) => {
    all = rows.map((values) => {
      const row = Object.fromEntries(columns.map((key, place) => [key, values[place]]));
      if (row.classes) row.classes = row.classes.map((number) => classes[number]);
      const texts = Object.keys(COLUMNS).filter((key) => key in row && COLUMNS[key].kind === "text");
      row.words = texts.map((key) => COLUMNS[key].text(row[key])).join(" ").toLowerCase();
      row.numbers = "neuron" in row ? [row.neuron] : [row.one, row.other].map((one) => one?.[0]);
      row.brushed = row[scores.dataset.of];
      return row;
    });
    const found = all.map((row) => row.brushed ?? 0);
    [least, most] = [Math.min(0, ...found), Math.max(0, ...found) || 1];
    for (const [id, value] of Object.entries({ least, most })) document.getElementById(id).textContent = value.toFixed(2);
    const options = (name, values) => find.elements[name]?.replaceChildren(make("option", { value: "" }, "all"), ...values.map((value) => make("option", { value }, value)));
    options("parts", [...new Set(all.map((row) => row.k))].sort((a, b) => a - b));
    options("class", [...classes].sort(collator.compare));
    if (find.elements.class) find.elements.class.parentElement.hidden = !classes.length;
    const told = Object.keys(COLUMNS).filter((key) => !FIXED.includes(key) && all.some((row) => row[key] === 0 || row[key]?.length || row[key] > 0));
    usual = told.filter((key) => !ASIDE.includes(key));
    document.getElementById("columns").append(...told.map((key) => make("label", {}, make("input", { type: "checkbox", value: key }), ` ${COLUMNS[key].head}`)));
    find.hidden = box.hidden = false;
    find.querySelector("details").open = innerWidth > 900;
    restore();
    if (!kept.length) { // the address leads to a heading
      asked = Object.fromEntries(KEYS.map((key) => [key, ""]));
      columned();
      show();
    }
    measured();
    box.scrollTop = history.state?.top ?? 0;
  };

  window.pureNbIndex = {
    // Shows some neurons only, with what they are in words, or all for null; whoever reads can have all again.
    only: (channels, words = "") => change({ only: channels ? channels.join(",") || "none" : "", of: words }),
  };
})();
