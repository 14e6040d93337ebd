// The circuits of two neurons in one table, whenever one of the two explorers shows another neuron.
(() => {
  "use strict";
  const { make, letter } = window.pureNb; // of explorer.js
  const table = document.getElementById("both");
  const { lower, below } = table.dataset;
  const pictured = JSON.parse(document.getElementById("pictured").textContent);
  const figures = [...document.querySelectorAll("figure.explorer")];
  const shown = [];

  const head = ({ neuron, strongest }, count) => [...Array(count).keys()].map((place) => {
    const said = `${neuron.channel} ${place ? letter(place - 1) : "all"}`;
    if (!place) return make("th", { scope: "col", class: "first" }, strongest(""), said);
    const key = make("span", { class: "part-key", style: `background: ${neuron.colours[place - 1]}` });
    return make("th", { scope: "col" }, strongest(letter(place - 1)), key, ` ${said}`);
  });

  const cell = (value, most, first) => {
    const text = value === undefined ? "·" : (value / 10).toFixed(1).replace("-", "−");
    const share = `--share: ${Math.round((100 * Math.abs(value ?? 0)) / most)}%`;
    return make("td", { class: `${value < 0 ? "less" : "more"}${first ? " first" : ""}`, style: share }, text);
  };

  const name = (channel) => {
    const strip = ([file, at]) => make("img", { class: "strip-image", src: file, style: `object-position: 0 ${at}%`, loading: "lazy", alt: "" });
    const images = pictured[channel] ? [make("span", { class: "lower-images" }, strip(pictured[channel]))] : [];
    const text = make("span", {}, make("span", { class: "of" }, `${lower} / `), String(channel));
    return make("th", { scope: "row" }, make("a", { href: `${below}${channel}.html` }, ...images, text));
  };

  const draw = () => {
    const circuits = shown.map(({ neuron }) => window.pureNb.circuits[neuron.channel]);
    const of = circuits.map((one) => new Map(one.rows.map(([channel, ...shares]) => [channel, shares])));
    const width = circuits.map((one) => one.rows[0].length - 1);
    const own = (channel) => of.map((known, place) => known.get(channel) ?? Array(width[place]).fill(undefined));
    const largest = (shares) => Math.max(0, ...shares.map((value) => Math.abs(value ?? 0)));
    const every = [...new Set(circuits.flatMap((one) => one.rows.slice(0, one.shown).map(([channel]) => channel)))];
    const most = Math.max(...every.map((channel) => largest(own(channel).flat())));
    // As on a neuron's page: a channel belongs to that which it carries more than twice as much of as of the other.
    const groups = [["Both", []], ...shown.map(({ neuron }) => [`Mostly ${neuron.channel}`, []])];
    for (const channel of every) {
      const [one, two] = own(channel).map(largest);
      groups[one > 2 * two ? 1 : two > 2 * one ? 2 : 0][1].push([channel, Math.max(one, two)]);
    }
    const columns = 1 + width[0] + width[1];
    const bodies = groups.filter(([, rows]) => rows.length).map(([said, rows]) => make("tbody", {},
      make("tr", {}, make("th", { scope: "rowgroup", colspan: columns }, said)),
      ...rows.sort((a, b) => b[1] - a[1]).map(([channel]) => make("tr", {}, name(channel),
        ...own(channel).flatMap((shares) => shares.map((value, place) => cell(value, most, !place)))))));
    const heads = shown.flatMap((one, place) => head(one, width[place]));
    table.replaceChildren(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, lower), ...heads)), ...bodies);
  };

  figures.forEach((figure, place) => figure.addEventListener("explorer-shows", (event) => {
    shown[place] = event.detail;
    if (shown[0] && shown[1]) draw();
  }));
})();
