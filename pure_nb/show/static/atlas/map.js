// The map: all parts of a layer in one plane, each a thumbnail that becomes a larger picture when one comes near.
//
// WebGL draws all thumbnails in one call, out of one texture; without it a plain canvas does, more slowly. Places are
// those of data/map.js, from 0 to 1; `view` says which of them is in the middle, and how many pixels one is.
(async () => {
  "use strict";

  const $ = (id) => document.getElementById(id);
  const box = $("map"), canvas = box.querySelector("canvas"), { load, item, letter, named } = window.pureNbParts;
  const [parts, known] = await Promise.all([load("parts"), load("map")]);
  const count = parts.channel.length, near = 56, far = 7, shown = 60; // pixels of a picture, a dot; pictures at once
  const sheet = Object.assign(new Image(), { src: known.sheet });
  await sheet.decode().catch(() => null);

  const layouts = known.layouts.map(({ places }) => Float32Array.from(places, (value) => value / known.reach));
  let layout = 0, places = layouts[0], view = { x: 0.5, y: 0.5, scale: 1 }, marked = null, width = 1, height = 1;

  // How large a thumbnail is where nothing is to be hidden, as a part of the plane; on the screen at least a dot.
  const side = () => Math.max(far, Math.min(200, view.scale * known.layouts[layout].side));
  const toScreen = (place) => [
    (places[2 * place] - view.x) * view.scale + width / 2, (places[2 * place + 1] - view.y) * view.scale + height / 2,
  ];

  // ---- colours ---------------------------------------------------------------------------------------------------

  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const GREY = [140, 140, 140];
  const along = (share) => {
    const at = Math.min(3.999, Math.max(0, 4 * share)), low = Math.floor(at);
    return RAMP[low].map((value, channel) => value + (at - low) * (RAMP[low + 1][channel] - value));
  };
  const hue = (number) => [0, 8, 4].map((turn) => { // the golden angle: hues of neighbours are far apart
    const k = (turn + (number * 137.508) / 30) % 12;
    return 255 * (0.55 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  });
  const most = Math.max(...known.score, 1e-9);
  const colourings = {
    neuron: (place) => hue(parts.channel[place]),
    score: (place) => along(known.score[place] / most),
    class: (place) => (known.class[place] < 0 ? GREY : hue(known.class[place])),
  };
  const colours = new Uint8Array(4 * count); // the last of four: whether it is marked, or faint as others are
  const colour = () => {
    const own = colourings[$("colour").value];
    for (let place = 0; place < count; place++) colours.set([...own(place), !marked || marked.has(place) ? 255 : 50], 4 * place);
    $("legend").innerHTML = $("colour").value === "score" ? `0<span></span>${most.toFixed(2)}` : "";
    pen.changed();
    draw();
  };

  // ---- drawing ---------------------------------------------------------------------------------------------------

  const withWebGL = () => {
    const gl = canvas.getContext("webgl2", { antialias: false });
    if (!gl) return null;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, `#version 300 es
      in vec2 place; in vec4 colour;
      uniform vec2 middle, size; uniform float scale, side; uniform ivec2 cells;
      out vec2 at, corner; out vec4 own;
      void main() {
        corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
        vec2 pixel = (place - middle) * scale + (corner - 0.5) * side;
        gl_Position = vec4(2.0 * pixel / size * vec2(1, -1), 0, 1);
        at = (vec2(gl_InstanceID % cells.x, gl_InstanceID / cells.x) + 0.02 + 0.96 * corner) / vec2(cells);
        own = colour;
      }`], [gl.FRAGMENT_SHADER, `#version 300 es
      precision highp float;
      in vec2 at, corner; in vec4 own; uniform sampler2D sheet; uniform float side; out vec4 seen;
      void main() {
        vec2 off = abs(corner - 0.5);
        float edge = step(0.5 - 1.5 / side, max(off.x, off.y)), away = 1.0 - smoothstep(8.0, 20.0, side);
        seen = vec4(mix(texture(sheet, at).rgb, own.rgb, max(edge, 0.75 * away)) * own.a, own.a);
      }`]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    const uniform = (name) => gl.getUniformLocation(program, name);
    const [middle, size, scale, wide, cells] = ["middle", "size", "scale", "side", "cells"].map(uniform);
    const filled = (name, width, kind) => {
      const buffer = gl.createBuffer(), own = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(own);
      gl.vertexAttribPointer(own, width, kind, kind === gl.UNSIGNED_BYTE, 0, 0);
      gl.vertexAttribDivisor(own, 1);
      return (data) => {
        gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
        gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      };
    };
    const setPlaces = filled("place", 2, gl.FLOAT), setColours = filled("colour", 4, gl.UNSIGNED_BYTE);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, sheet);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_NEAREST);
    gl.texParameterf(gl.TEXTURE_2D, gl.TEXTURE_MAX_LOD, 1); // further down neighbours would mix
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.uniform2i(cells, parts.columns, Math.ceil(count / parts.columns));
    return {
      changed() {
        setPlaces(places);
        setColours(colours);
      },
      draw() {
        gl.viewport(0, 0, canvas.width, canvas.height);
        gl.clear(gl.COLOR_BUFFER_BIT);
        gl.uniform2f(middle, view.x, view.y);
        gl.uniform2f(size, width, height);
        gl.uniform1f(scale, view.scale);
        gl.uniform1f(wide, side());
        gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
      },
    };
  };

  const withCanvas = () => {
    const context = canvas.getContext("2d"), tile = sheet.naturalWidth / parts.columns;
    return {
      changed() {},
      draw() {
        const own = side(), ratio = canvas.width / width;
        context.setTransform(ratio, 0, 0, ratio, 0, 0);
        context.clearRect(0, 0, width, height);
        for (let place = 0; place < count; place++) {
          const [x, y] = toScreen(place);
          if (x < -own || y < -own || x > width + own || y > height + own) continue;
          context.globalAlpha = colours[4 * place + 3] / 255;
          context.fillStyle = `rgb(${colours[4 * place]} ${colours[4 * place + 1]} ${colours[4 * place + 2]})`;
          context.fillRect(x - own / 2, y - own / 2, own, own);
          if (own < 14) continue;
          const [column, row] = [place % parts.columns, Math.floor(place / parts.columns)];
          context.drawImage(sheet, column * tile, row * tile, tile, tile, x - own / 2 + 1.5, y - own / 2 + 1.5, own - 3, own - 3);
        }
      },
    };
  };

  let pen = withWebGL() ?? withCanvas();
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    pen = withWebGL();
    colour();
  });

  // ---- larger pictures, over the canvas --------------------------------------------------------------------------

  const overlay = document.createElement("div");
  overlay.className = "near";
  box.append(overlay);
  let laid = null; // the view for which the overlay was laid out

  // A part's picture, cut out of a sheet of the atlas: see explorer.js.
  const picture = (element, [sheet, cell, left, top, wide], size) => {
    const [file, columns, rows] = known.sheets[sheet], scale = size / wide, units = 1000 * scale;
    element.style.backgroundImage = `url("${file}")`;
    element.style.backgroundSize = `${units * columns}px ${units * rows}px`;
    element.style.backgroundPosition = `${-units * (cell % columns) - scale * left}px ${-units * Math.floor(cell / columns) - scale * top}px`;
  };

  // The parts that are seen, the nearest to the middle first.
  const inSight = () => {
    const found = [], own = side() / 2;
    for (let place = 0; place < count; place++) {
      const [x, y] = toScreen(place);
      if (x > -own && y > -own && x < width + own && y < height + own) found.push([(x - width / 2) ** 2 + (y - height / 2) ** 2, place]);
    }
    return found.sort((a, b) => a[0] - b[0]).map(([, place]) => place);
  };

  const settled = () => {
    const seen = inSight(), own = side();
    overlay.replaceChildren();
    laid = { ...view };
    overlay.style.transform = "";
    if (own >= near) {
      for (const place of seen.slice(0, shown)) {
        if (!known.cuts[place]) continue; // it has no picture
        const element = document.createElement("span"), [x, y] = toScreen(place);
        Object.assign(element.style, { left: `${x - own / 2}px`, top: `${y - own / 2}px`, width: `${own}px`, height: `${own}px` });
        element.style.borderColor = `rgb(${colours[4 * place]} ${colours[4 * place + 1]} ${colours[4 * place + 2]})`;
        element.style.opacity = colours[4 * place + 3] / 255;
        picture(element, known.cuts[place], own - 4);
        overlay.append(element);
      }
    }
    const focused = $("middle").contains(document.activeElement);
    if (!focused) $("middle").replaceChildren(...seen.slice(0, 12).map((place) => item(parts, place, parts.label[place])));
    remember();
  };

  let asked = 0, waiting = 0;
  const draw = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      pen.draw();
      if (laid) {
        const times = view.scale / laid.scale;
        overlay.style.transform = `translate(${(laid.x - view.x) * view.scale + (1 - times) * width / 2}px, ${(laid.y - view.y) * view.scale + (1 - times) * height / 2}px) scale(${times})`;
        overlay.style.display = side() >= near ? "" : "none";
      }
      place();
      clearTimeout(waiting);
      waiting = setTimeout(settled, 150);
    });
  };

  // ---- one part that is pointed at -------------------------------------------------------------------------------

  const ring = document.createElement("div"), name = document.createElement("span");
  ring.id = "mark";
  ring.append(name);
  box.append(ring);
  let pointed = -1, picked = -1; // the latter is told of beside the map

  const place = () => {
    ring.style.display = pointed < 0 ? "none" : "block";
    if (pointed < 0) return;
    const own = side(), [x, y] = toScreen(pointed);
    Object.assign(ring.style, { left: `${x - own / 2}px`, top: `${y - own / 2}px`, width: `${own}px`, height: `${own}px` });
    name.textContent = `${named(parts, pointed)} ${parts.label[pointed]}`;
  };
  const point = (other) => {
    pointed = other;
    place();
  };

  const at = (x, y) => {
    let best = -1, least = Math.max(12, 0.75 * side()) ** 2;
    for (let other = 0; other < count; other++) {
      const [left, top] = toScreen(other), distance = (left - x) ** 2 + (top - y) ** 2;
      if (distance < least) [best, least] = [other, distance];
    }
    return best;
  };

  const fly = (other) => {
    const closer = Math.max(view.scale, near / known.layouts[layout].side);
    view = { x: places[2 * other], y: places[2 * other + 1], scale: closer };
    point(other);
    draw();
  };

  const chosen = $("chosen");
  const heading = (text) => Object.assign(document.createElement("h2"), { textContent: text });
  const tell = (other) => {
    const list = document.createElement("ol");
    list.className = "part-list";
    list.append(item(parts, other, parts.label[other]));
    chosen.replaceChildren(heading("This part"), list);
    chosen.append(`${parts.size[other]} images; the neuron's score is ${known.score[other].toFixed(2)}.`);
    const alike = known.alike[other] ?? [];
    if (!alike.length) return;
    const others = document.createElement("ol");
    others.className = "part-list";
    for (let at = 0; at < alike.length; at += 3) {
      others.append(item(parts, alike[at], `${(alike[at + 1] / 100).toFixed(2)}${alike[at + 2] ? " redundant" : ""}`));
    }
    chosen.append(heading("More like this"), others);
  };

  const choose = (other) => {
    picked = other;
    point(other);
    if (other >= 0) tell(other);
    else chosen.replaceChildren();
    remember();
  };

  // Links of lists point at their part; one of the lists here flies there first, and leads to the neuron then.
  document.addEventListener("focusin", (event) => event.target.dataset?.place && point(Number(event.target.dataset.place)));
  document.addEventListener("pointerover", (event) => {
    const link = event.target.closest?.("[data-place]");
    if (link) point(Number(link.dataset.place));
  });
  chosen.addEventListener("click", (event) => {
    const link = event.target.closest(".part-list ~ .part-list [data-place]");
    if (!link) return;
    event.preventDefault();
    fly(Number(link.dataset.place));
    choose(Number(link.dataset.place));
  });

  // ---- many parts: those a word finds, or a lasso ----------------------------------------------------------------

  const mark = (found) => {
    marked = found && new Set(found);
    colour();
  };
  window.pureNbMap = { mark };

  const columns = ["neuron", "part", "images", "score", "class", "word"];
  const row = (other) => [
    parts.channel[other], letter(parts.part[other]), parts.size[other], known.score[other],
    known.classes[known.class[other]] ?? "", parts.label[other],
  ];
  const saved = (found) => {
    const text = [columns, ...found.map(row)].map((cells) => cells.map((cell) => `"${String(cell).replaceAll('"', '""')}"`).join(",")).join("\n");
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: "parts.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const list = (found) => {
    const table = document.createElement("table"), scroll = document.createElement("div"), tools = document.createElement("p");
    const head = table.createTHead().insertRow();
    for (const column of columns) head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: column }));
    const body = table.createTBody();
    for (const other of found.slice(0, 200)) {
      const line = body.insertRow();
      for (const cell of row(other)) line.insertCell().textContent = cell;
      const link = Object.assign(document.createElement("a"), { href: `${parts.channel[other]}.html`, textContent: parts.channel[other] });
      link.dataset.place = other;
      line.cells[0].replaceChildren(link);
    }
    Object.assign(scroll, { className: "scroll", tabIndex: 0 });
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Table of the parts in the lasso");
    scroll.append(table);
    tools.className = "map-tools";
    for (const [text, act] of [["CSV", () => saved(found)], ["clear", () => { chosen.replaceChildren(); mark(null); }]]) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.addEventListener("click", act);
      tools.append(button);
    }
    const query = new URLSearchParams({ only: [...new Set(found.map((other) => parts.channel[other]))], of: "parts in a lasso of the map" });
    if (found.length) tools.append(Object.assign(document.createElement("a"), { href: `index.html#${query}`, textContent: "their neurons in the table of all" }));
    chosen.replaceChildren(heading(`${found.length} parts in the lasso${found.length > 200 ? ", the first 200" : ""}`), tools, scroll);
  };

  const inside = (polygon, [x, y]) => {
    let odd = false;
    polygon.forEach(([x1, y1], corner) => {
      const [x2, y2] = polygon[(corner || polygon.length) - 1];
      if ((y1 > y) !== (y2 > y) && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) odd = !odd;
    });
    return odd;
  };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polygon"));
  box.append(svg);

  // ---- moving ----------------------------------------------------------------------------------------------------

  const least = () => 0.5 * Math.min(width, height);
  const greatest = () => Math.max(4 * Math.min(width, height), 200 / known.layouts[layout].side);
  const pan = (x, y) => {
    view.x = Math.min(1, Math.max(0, view.x - x / view.scale));
    view.y = Math.min(1, Math.max(0, view.y - y / view.scale));
    draw();
  };
  const zoom = (times, x = width / 2, y = height / 2) => {
    const scale = Math.min(greatest(), Math.max(least(), view.scale * times));
    const [left, top] = [x - width / 2, y - height / 2];
    view.x += left / view.scale - left / scale;
    view.y += top / view.scale - top / scale;
    view.scale = scale;
    draw();
  };
  const all = () => {
    const room = 0.98 * Math.min(width, height), own = known.layouts[layout].side; // also for what lies at the edge
    view = { x: 0.5, y: 0.5, scale: Math.max(room / (1 + own), room - 200) };
    draw();
  };

  const fingers = new Map();
  let lasso = null, moved = false;
  const drawn = () => $("lasso").getAttribute("aria-pressed") === "true";
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = false;
    lasso = (drawn() || event.shiftKey) && fingers.size === 1 ? [[event.offsetX, event.offsetY]] : null;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId), now = [event.offsetX, event.offsetY];
    if (!before) {
      point(at(...now));
      return;
    }
    moved ||= Math.hypot(now[0] - before[0], now[1] - before[1]) > 3;
    if (lasso) {
      lasso.push(now);
      svg.firstChild.setAttribute("points", lasso.join(" "));
    } else if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      zoom(apart(now) / Math.max(1, apart(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    } else if (moved) {
      pan(now[0] - before[0], now[1] - before[1]);
    } else {
      return; // a hand that trembles
    }
    fingers.set(event.pointerId, now);
  });
  const lifted = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (lasso?.length > 2) {
      const polygon = lasso, found = inSight().filter((other) => inside(polygon, toScreen(other)));
      choose(-1);
      mark(found.length ? found : null);
      list(found);
    } else if (!moved && event.type === "pointerup") {
      choose(at(event.offsetX, event.offsetY));
    }
    lasso = null;
    svg.firstChild.setAttribute("points", "");
  };
  canvas.addEventListener("pointerup", lifted);
  canvas.addEventListener("pointercancel", lifted);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(2 ** (-event.deltaY / 250), event.offsetX, event.offsetY);
  }, { passive: false });

  const keys = {
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: all, Enter: () => choose(at(width / 2, height / 2)),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  $("nearer").addEventListener("click", () => zoom(1.5));
  $("farther").addEventListener("click", () => zoom(1 / 1.5));
  $("all").addEventListener("click", all);
  $("colour").addEventListener("change", colour);
  $("layout").addEventListener("change", () => {
    layout = $("layout").selectedIndex;
    places = layouts[layout];
    colour();
  });
  $("lasso").addEventListener("click", () => {
    $("lasso").setAttribute("aria-pressed", String(!drawn()));
    box.classList.toggle("draws", drawn());
  });

  // ---- the state, in the address ---------------------------------------------------------------------------------

  const remember = () => {
    const state = { by: $("layout").value, colour: $("colour").value, at: [view.x.toFixed(4), view.y.toFixed(4), (view.scale / Math.min(width, height)).toFixed(3)] };
    if (picked >= 0) state.part = named(parts, picked).replace(" ", "");
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  };
  const restore = () => {
    const state = new URLSearchParams(location.hash.slice(1)), part = /^(\d+)([A-Z]+)$/.exec(state.get("part") ?? "");
    for (const id of ["layout", "colour"]) {
      const options = [...$(id).options].map((option) => option.value);
      $(id).selectedIndex = Math.max(0, options.indexOf(state.get(id === "layout" ? "by" : id)));
    }
    layout = $("layout").selectedIndex;
    places = layouts[layout];
    const [x, y, scale] = (state.get("at") ?? "").split(",").map(Number);
    all();
    if (scale > 0 && x >= 0 && y >= 0) view = { x, y, scale: scale * Math.min(width, height) };
    const other = part ? parts.channel.findIndex((channel, one) => channel === Number(part[1]) && letter(parts.part[one]) === part[2]) : -1;
    if (other >= 0) {
      if (!(scale > 0)) fly(other);
      choose(other);
    }
    colour();
  };
  window.addEventListener("hashchange", restore);

  const resize = () => {
    const ratio = window.devicePixelRatio || 1, before = Math.min(width, height);
    [width, height] = [box.clientWidth, box.clientHeight];
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    view.scale *= Math.min(width, height) / before;
    draw();
  };
  resize();
  restore();
  new ResizeObserver(resize).observe(box);
})();
