// In Jupyter: a panel below the explorer that takes a picture, whose explanation the kernel computes.
const pureNbDropped = ({ model, el }) => {
  const { make } = pureNb;
  const file = make("input", { type: "file", accept: "image/*" });
  const choice = (name, first) => make("select", { "aria-label": name }, make("option", { value: "" }, first));
  const output = choice("output", "the largest"), against = choice("against", "none");
  const said = make("p", { role: "status" }), shown = make("div");
  const drop = make("label", { class: "explorer-drop" }, "Drop a picture here, or choose one: ", file);
  const panel = make(
    "details", { class: "explorer-dropped", "data-lm-suppress-shortcuts": true }, make("summary", {}, "Why did it say so? Explain a picture"), drop,
    make("div", { class: "explorer-drop-line" }, make("label", {}, "output ", output), make("label", {}, "against ", against)), said, shown,
  );
  let picture, asked = 0;

  const ask = (what) => model.send({ why: { layer: model.get("layer"), number: (asked += 1), ...what } });
  const number = (control) => (control.value === "" ? null : Number(control.value));
  const explain = () => {
    if (!picture) return;
    said.textContent = `Explaining ${picture.name} …`;
    ask({ ...picture, output: number(output), against: number(against) });
  };
  const take = (one) => {
    if (!one) return;
    const reader = new FileReader();
    reader.onload = () => {
      picture = { name: one.name, picture: reader.result };
      explain();
    };
    reader.readAsDataURL(one);
  };
  model.on("msg:custom", ({ why }) => {
    if (why?.number !== asked) return;
    if (why.outputs) {
      const options = () => why.outputs.map((name, place) => make("option", { value: place }, name));
      [output, against].forEach((control) => control.append(...options()));
      explain();
      return;
    }
    said.textContent = why.problem ?? "";
    shown.innerHTML = why.html ?? "";
  });
  panel.addEventListener("toggle", () => {
    if (panel.open && output.length === 1) ask({});
  });
  file.addEventListener("change", () => take(file.files[0]));
  [output, against].forEach((control) => control.addEventListener("change", explain));
  model.on("change:layer", explain);
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  el.append(panel);
};

export default {
  render(how) {
    const close = pureNb.render(how);
    pureNbDropped(how);
    return close;
  },
};
