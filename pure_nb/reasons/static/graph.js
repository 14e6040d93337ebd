for (const graph of document.querySelectorAll(".graph")) {
  const edges = [...graph.querySelectorAll("path")], nodes = [...graph.querySelectorAll(".graph-node")];
  const told = graph.querySelector(".graph-told"), before = told.textContent;
  const show = node => {
    const near = new Set(node && [node.dataset.node]);
    for (const edge of edges) {
      const ends = edge.dataset.ends.split(" "), own = Boolean(node) && ends.includes(node.dataset.node);
      edge.classList.toggle("graph-own", own);
      if (own) ends.forEach(end => near.add(end));
    }
    graph.classList.toggle("graph-one", Boolean(node));
    nodes.forEach(other => other.classList.toggle("graph-near", near.has(other.dataset.node)));
    told.textContent = node ? node.dataset.told : before;
  };
  const focused = () => show(document.activeElement.closest(".graph-node"));
  graph.addEventListener("pointerover", event => {
    const node = event.target.closest(".graph-node");
    node ? show(node) : focused();
  });
  graph.addEventListener("pointerleave", focused);
  graph.addEventListener("focusin", focused);
  graph.addEventListener("focusout", event => { if (!graph.contains(event.relatedTarget)) show(null); });
}
