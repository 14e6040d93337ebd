// The small network in a page: pure_nb/show/playground.py says what it is given. Arrays are [channels, rows, columns].
window.pureNbPlayground = (() => {
  const BARS = 8;
  const MOST = 4; // objects, as in the scenes that the network was trained on
  const GROUNDS = ["dark", "light", "stripes", "checks", "dots"];

  function network(told) {
    const bytes = Uint8Array.from(atob(told.weights), (one) => one.charCodeAt(0));
    const weights = new Float32Array(bytes.buffer);
    const { size, blocks } = told;

    function padded(x, n, channels, p) {
      if (!p) return x;
      const wide = n + 2 * p;
      const found = new Float32Array(channels * wide * wide);
      for (let c = 0; c < channels; c++)
        for (let y = 0; y < n; y++)
          found.set(x.subarray((c * n + y) * n, (c * n + y + 1) * n), (c * wide + y + p) * wide + p);
      return found;
    }

    // A convolution with its bias. A row of the padded inputs follows the other, so one loop goes over all positions, and
    // what lies between rows is dropped. Most of all time is spent in it.
    function convolved(x, n, { o, i, k, s, p, w, b }) {
      const wide = n + 2 * p;
      const m = Math.floor((wide - k) / s) + 1;
      const from = padded(x, n, i, p);
      const found = new Float32Array(o * m * m);
      const flat = new Float32Array((m - 1) * s * wide + (m - 1) * s + 1);
      const length = flat.length;
      for (let out = 0; out < o; out++) {
        flat.fill(weights[b + out]);
        for (let c = 0; c < i; c++)
          for (let ky = 0; ky < k; ky++) {
            const row = w + ((out * i + c) * k + ky) * k;
            const at = (c * wide + ky) * wide;
            if (k === 3) {
              const [first, second, third] = [weights[row], weights[row + 1], weights[row + 2]];
              for (let to = 0; to < length; to += s)
                flat[to] += first * from[at + to] + second * from[at + to + 1] + third * from[at + to + 2];
            } else
              for (let kx = 0; kx < k; kx++) {
                const weight = weights[row + kx];
                for (let to = 0; to < length; to += s) flat[to] += weight * from[at + to + kx];
              }
          }
        for (let y = 0; y < m; y++)
          for (let x = 0; x < m; x++) found[(out * m + y) * m + x] = flat[y * s * wide + x * s];
      }
      return { x: found, n: m };
    }

    const rectified = (x) => {
      for (let at = 0; at < x.length; at++) if (x[at] < 0) x[at] = 0;
      return x;
    };

    // From pixels, red, green, blue and alpha of each, to all that is shown of them.
    function forward(pixels) {
      let x = new Float32Array(3 * size * size);
      for (let c = 0; c < 3; c++)
        for (let at = 0; at < size * size; at++)
          x[c * size * size + at] = (pixels[4 * at + c] / 255 - told.mean[c]) / told.std[c];
      let now = convolved(x, size, told.stem);
      rectified(now.x);
      let lower, middle;
      for (const { first, second, down } of blocks) {
        lower = now;
        middle = convolved(lower.x, lower.n, first);
        rectified(middle.x);
        now = convolved(middle.x, middle.n, second);
        const beside = down ? convolved(lower.x, lower.n, down).x : lower.x;
        for (let at = 0; at < now.x.length; at++) now.x[at] += beside[at];
        rectified(now.x);
      }
      const area = now.n * now.n;
      const channels = now.x.length / area;
      const mean = Array.from({ length: channels }, (_, c) => {
        let sum = 0;
        for (let at = c * area; at < (c + 1) * area; at++) sum += now.x[at];
        return sum / area;
      });
      const logits = told.classes.map((_, label) =>
        mean.reduce((sum, one, c) => sum + one * weights[told.head.w + label * channels + c], weights[told.head.b + label]),
      );
      return { lower, middle, top: now, logits };
    }

    // Adds to found what reaches the inputs of a convolution with stride 1 from one map of relevance at one output.
    function backward(found, above, n, { i, k, p, w }, out) {
      for (let c = 0; c < i; c++)
        for (let ky = 0; ky < k; ky++)
          for (let kx = 0; kx < k; kx++) {
            const weight = weights[w + ((out * i + c) * k + ky) * k + kx];
            for (let y = Math.max(0, p - ky); y < Math.min(n, n + p - ky); y++)
              for (let x = Math.max(0, p - kx); x < Math.min(n, n + p - kx); x++)
                found[(c * n + y + ky - p) * n + x + kx - p] += weight * above[y * n + x];
          }
    }

    // The circuit of a channel: input times gradient at the lower layer from its activations, summed over positions.
    function circuit({ lower, middle, top }, channel) {
      const { n } = top;
      const area = n * n;
      const { first, second, down } = blocks[blocks.length - 1];
      const start = top.x.subarray(channel * area, (channel + 1) * area); // 0 where the bend stops all
      const between = new Float32Array(second.i * area);
      const below = new Float32Array(first.i * area);
      backward(between, start, n, second, channel);
      for (let c = 0; c < second.i; c++) {
        const own = between.subarray(c * area, (c + 1) * area);
        for (let at = 0; at < area; at++) if (middle.x[c * area + at] <= 0) own[at] = 0;
        backward(below, own, n, first, c);
      }
      backward(below, start, n, down, channel);
      const vector = Array.from({ length: first.i }, (_, c) => {
        let sum = 0;
        for (let at = c * area; at < (c + 1) * area; at++) sum += below[at] * lower.x[at];
        return sum;
      });
      const whole = vector.reduce((sum, one) => sum + Math.abs(one), 1e-10);
      return vector.map((one) => one / whole);
    }

    // The part whose mean circuit is nearest, -1 if it is farther off than those of its own images are.
    function part(vector, { centres, limits }) {
      if (!vector.some((one) => one)) return -1;
      const far = limits.map((_, k) =>
        Math.hypot(...vector.map((one, c) => one - weights[centres + k * vector.length + c])),
      );
      const nearest = far.indexOf(Math.min(...far));
      return far[nearest] <= limits[nearest] + 1e-6 ? nearest : -1;
    }
    return { forward, circuit, part };
  }

  function make(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (name in made && name !== "list") made[name] = value;
      else made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  const colour = (hue, dark) => `hsl(${hue} 85% ${dark ? 72 : 30}%)`;

  function ground(brush, size, kind) {
    const [first, second] = kind === "light" ? ["#e8e4da", "#e8e4da"] : ["#26323a", kind === "dark" ? "#26323a" : "#3a2c40"];
    brush.fillStyle = first;
    brush.fillRect(0, 0, size, size);
    brush.fillStyle = second;
    for (let y = 0; y < size; y += 12)
      for (let x = 0; x < size; x += 12) {
        const even = (x + y) % 24 === 0;
        if (kind === "stripes" && y % 24 === 0) brush.fillRect(x, y, 12, 12);
        else if (kind === "checks" && even) brush.fillRect(x, y, 12, 12);
        else if (kind === "dots") {
          brush.beginPath();
          brush.arc(x + 6, y + 6, 3.5, 0, 7);
          brush.fill();
        }
      }
  }

  // The scene as the network sees it.
  function drawn(brush, told, scene) {
    brush.setTransform(1, 0, 0, 1, 0, 0);
    ground(brush, told.size, scene.ground);
    for (const one of scene.objects) {
      const scale = told.cell * one.size;
      brush.setTransform(1, 0, 0, 1, 0, 0);
      brush.translate(one.x, one.y);
      brush.rotate((one.turn * Math.PI) / 180);
      brush.scale(scale, scale);
      brush.fillStyle = brush.strokeStyle = colour(one.hue, scene.ground !== "light");
      brush.lineWidth = 0.6 / scale; // thin strokes are as bold as in the scenes that the network knows
      const path = new Path2D(told.classes[one.label].path);
      brush.fill(path);
      brush.stroke(path);
    }
    return brush.getImageData(0, 0, told.size, told.size).data;
  }

  function run(figure, told) {
    const net = network(told);
    const channels = Object.keys(told.neurons);
    const scene = { ground: "dark", objects: [] };
    const small = make("canvas", { width: told.size, height: told.size });
    const brush = small.getContext("2d", { willReadFrequently: true });
    const view = make("canvas", { width: 4 * told.size, height: 4 * told.size, tabIndex: 0, className: "playground-scene" });
    view.setAttribute("role", "application");
    const readings = make("div", { className: "playground-readings" });
    const words = make("p", { className: "playground-words", ariaLive: "polite" });
    const objects = make("div", { className: "playground-objects", role: "group", ariaLabel: "objects in the scene" });
    let chosen = 0;
    let best = {};
    let asked = 0;

    function control(label, element) {
      return make("label", { className: "playground-control" }, make("span", {}, label), element);
    }
    function choice(label, options, value) {
      const select = make("select", { ariaLabel: label }, ...options.map(([own, text]) => make("option", { value: own }, text)));
      select.value = value;
      return select;
    }
    const neuron = choice("neuron", channels.map((one) => [one, one]), channels.includes(figure.dataset.start) ? figure.dataset.start : channels[0]);
    const grounds = choice("ground", GROUNDS.map((one) => [one, one]), scene.ground);
    const named = told.classes.map(({ name }, label) => [label, name.replaceAll("_", " ")]);
    const kind = choice("kind of object", named.toSorted((a, b) => a[1].localeCompare(b[1])), told.neurons[neuron.value].usual);
    const sliders = Object.fromEntries(
      [["turn", -180, 180, 1], ["size", 0.4, 1.2, 0.01], ["hue", 0, 359, 1]].map(([name, min, max, step]) => [
        name,
        make("input", { type: "range", min, max, step, ariaLabel: name }),
      ]),
    );
    const heat = make("input", { type: "checkbox", checked: true });
    const add = make("button", { type: "button", className: "playground-button" }, "add");
    const remove = make("button", { type: "button", className: "playground-button" }, "remove");

    const middle = told.size / 2;
    function place(label) {
      const taken = ([x, y]) => scene.objects.some((one) => Math.hypot(one.x - (x * middle) / 2, one.y - (y * middle) / 2) < told.cell / 2);
      const corners = [[1, 1], [3, 3], [3, 1], [1, 3]];
      const corner = corners.find((one) => !taken(one)) || corners[scene.objects.length];
      const [x, y] = corner.map((one) => (one * middle) / 2);
      scene.objects.push({ label, x, y, turn: 0, size: 0.8, hue: (47 + 137 * scene.objects.length) % 360 });
      chosen = scene.objects.length - 1;
    }

    function shown({ top }, channel, one) {
      const large = view.getContext("2d");
      large.imageSmoothingEnabled = true;
      large.drawImage(small, 0, 0, view.width, view.height);
      const side = view.width / top.n;
      if (heat.checked)
        for (let at = 0; at < top.n * top.n; at++) {
          const share = Math.min(1, top.x[channel * top.n * top.n + at] / one.strongest);
          large.fillStyle = `rgb(255 190 40 / ${0.65 * share})`;
          large.fillRect((at % top.n) * side, Math.floor(at / top.n) * side, side, side);
        }
      const own = scene.objects[chosen];
      if (own) {
        const radius = (told.cell * own.size * 4) / 2 + 6;
        large.strokeStyle = "#fff";
        large.lineWidth = 2;
        large.setLineDash([6, 6]);
        large.strokeRect(4 * own.x - radius, 4 * own.y - radius, 2 * radius, 2 * radius);
        large.setLineDash([]);
      }
    }

    function bars(vector, one, part) {
      const order = vector.map((share, lower) => [Math.abs(share), share, lower]).sort((a, b) => b[0] - a[0]).slice(0, BARS);
      const longest = order[0][0] || 1;
      const rows = order.map(([size, share, lower]) => {
        const bar = make("span", { className: "playground-bar" });
        bar.style.width = `${(100 * size) / longest}%`;
        bar.style.backgroundColor = share < 0 ? "#b0b0b0" : part < 0 ? "currentColor" : one.colours[part];
        return make("tr", {}, make("th", { scope: "row" }, String(lower)), make("td", {}, bar), make("td", {}, `${(100 * share).toFixed(0)} %`));
      });
      return make("table", {}, make("caption", {}, "its circuit: the strongest channels of layer3"), ...rows);
    }

    function update() {
      asked = 0;
      const channel = Number(neuron.value);
      const one = told.neurons[neuron.value];
      const found = net.forward(drawn(brush, told, scene));
      const area = found.top.n ** 2;
      const peak = Math.max(...found.top.x.subarray(channel * area, (channel + 1) * area));
      const vector = net.circuit(found, channel);
      const part = peak > 0 ? net.part(vector, one) : -1;
      const share = peak / one.strongest;
      const usual = named[one.usual][1];
      const without = !scene.objects.some(({ label }) => label === one.usual);
      if (without) best[channel] = Math.max(best[channel] || 0, share);
      const called = part < 0 ? "unlike any of its parts" : one.names[part] ? `part ${one.names[part]} (${one.meanings[part]})` : one.meanings[part];
      const top = found.logits.map((logit, label) => [Math.exp(logit), label]);
      const sum = top.reduce((all, [own]) => all + own, 0);
      const seen = top.sort((a, b) => b[0] - a[0]).slice(0, 3).map(([own, label]) => `${named[label][1]} ${((100 * own) / sum).toFixed(0)} %`);
      const meter = make("meter", { min: 0, max: 1.2, low: one.weakest / one.strongest, value: share, ariaLabel: "activation" });
      const fires = peak >= one.weakest;
      words.textContent =
        `Neuron ${channel}: ${(100 * share).toFixed(0)} % of its strongest image` +
        (fires ? ", enough to be among its strongest images" : "") + (peak > 0 ? `; the way in is ${called}.` : ".");
      const chip = make("p", { className: "playground-part" }, peak > 0 ? called : "silent");
      chip.style.borderColor = part < 0 ? "" : one.colours[part];
      readings.replaceChildren(
        make("p", {}, meter, ` ${(100 * share).toFixed(0)} %`),
        chip,
        bars(vector, one, part),
        make("p", {}, `The network sees: ${seen.join(", ")}.`),
        make("p", { className: "playground-game" }, make("strong", {}, `A game: make neuron ${channel} fire without any ${usual}. `),
          without ? `Now ${(100 * share).toFixed(0)}, ` : `Take the ${usual} away; `,
          `best ${(100 * (best[channel] || 0)).toFixed(0)}, won at ${((100 * one.weakest) / one.strongest).toFixed(0)}.`),
      );
      shown(found, channel, one);
      view.setAttribute("aria-label", `scene: ${scene.objects.map(({ label }) => named[label][1]).join(", ") || "empty"}; arrow keys move, R turns, plus and minus resize, Tab leaves`);
      figure.dataset.frames = Number(figure.dataset.frames || 0) + 1;
    }
    const later = () => { if (!asked) asked = requestAnimationFrame(update); };

    function listed() {
      objects.replaceChildren(
        ...scene.objects.map(({ label }, number) => {
          const button = make("button", { type: "button", className: "playground-button", ariaPressed: String(number === chosen) }, named[label][1]);
          button.addEventListener("click", () => { chosen = number; listed(); objects.children[number].focus(); });
          return button;
        }),
      );
      const own = scene.objects[chosen];
      for (const [name, slider] of Object.entries(sliders)) {
        slider.disabled = !own;
        if (own) slider.value = own[name];
      }
      add.disabled = scene.objects.length >= MOST;
      remove.disabled = !own;
      later();
    }

    function moved(x, y) {
      const own = scene.objects[chosen];
      if (!own) return;
      own.x = Math.min(told.size, Math.max(0, x));
      own.y = Math.min(told.size, Math.max(0, y));
      later();
    }
    const at = (event) => {
      const box = view.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top].map((one) => (one * told.size) / box.width);
    };
    view.addEventListener("pointerdown", (event) => {
      const [x, y] = at(event);
      const far = scene.objects.map((one) => Math.hypot(one.x - x, one.y - y));
      if (!far.length || Math.min(...far) > told.cell / 1.5) return;
      chosen = far.indexOf(Math.min(...far));
      view.setPointerCapture(event.pointerId);
      listed();
    });
    view.addEventListener("pointermove", (event) => { if (view.hasPointerCapture(event.pointerId)) moved(...at(event)); });
    view.addEventListener("keydown", (event) => {
      const own = scene.objects[chosen];
      const step = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] }[event.key];
      const change = { r: ["turn", 10], R: ["turn", -10], "+": ["size", 0.04], "-": ["size", -0.04] }[event.key];
      if (!own || !(step || change) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (step) return moved(own.x + step[0], own.y + step[1]);
      const slider = sliders[change[0]];
      const next = own[change[0]] + change[1];
      slider.value = change[0] === "turn" ? ((next + 540) % 360) - 180 : next;
      own[change[0]] = Number(slider.value);
      later();
    });
    for (const [name, slider] of Object.entries(sliders))
      slider.addEventListener("input", () => { scene.objects[chosen][name] = Number(slider.value); later(); });
    grounds.addEventListener("change", () => { scene.ground = grounds.value; later(); });
    neuron.addEventListener("change", later);
    heat.addEventListener("change", later);
    add.addEventListener("click", () => { place(Number(kind.value)); listed(); if (add.disabled) view.focus(); });
    remove.addEventListener("click", () => { scene.objects.splice(chosen, 1); chosen = Math.max(0, chosen - 1); listed(); if (remove.disabled) view.focus(); });

    place(told.neurons[neuron.value].usual);
    place((told.neurons[neuron.value].usual + 7) % told.classes.length);
    chosen = 0;
    const tools = make("div", { className: "playground-tools" },
      control("neuron", neuron), control("ground", grounds), objects,
      make("div", { className: "playground-row" }, control("new", kind), add, remove),
      ...Object.entries(sliders).map(([name, slider]) => control(name, slider)),
      make("label", { className: "playground-control" }, heat, make("span", {}, "show where the neuron is active")),
    );
    figure.querySelector(".playground-start").replaceWith(make("div", { className: "playground-stage" }, view, readings, tools), words);
    figure.playground = { net, scene, told, update, drawn: () => drawn(brush, told, scene) };
    listed();
    view.focus({ preventScroll: true });
  }

  function ready(figure) {
    if (figure.querySelector(".playground-start, .playground-stage")) return;
    const start = make("button", { type: "button", className: "playground-button playground-start" }, "Start the network in this page");
    start.addEventListener("click", () => {
      if (window.pureNbNetwork) return run(figure, window.pureNbNetwork);
      start.disabled = true;
      const script = make("script", { src: figure.dataset.network });
      script.addEventListener("load", () => run(figure, window.pureNbNetwork));
      script.addEventListener("error", () => { start.disabled = false; start.textContent = "The network could not be read; try again"; });
      document.head.append(script);
    });
    figure.prepend(start);
  }
  for (const figure of document.querySelectorAll("figure.playground")) ready(figure);
  return { network };
})();
