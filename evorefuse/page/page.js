"use strict";
// The lineage explorer: arm, search and order. It only shows, hides and moves what the page already holds as text.
(() => {
  const tools = document.querySelector(".tools");
  if (!tools) return;
  const list = document.querySelector(".lineages");
  const items = [...list.children].map((node) => ({ node, text: node.textContent.toLowerCase() }));
  const search = tools.querySelector("input[type=search]");
  const order = tools.querySelector("select");
  const show = () => {
    const chosen = tools.querySelector("input[name=arm]:checked");
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [key, way] = order.value.split("-");
    const sign = way === "down" ? -1 : 1;
    let seen = 0;
    let all = 0;
    for (const { node, text } of items) {
      const inArm = !chosen || node.dataset.arm === chosen.value;
      const hit = inArm && words.every((word) => text.includes(word));
      node.hidden = !hit;
      all += inArm;
      seen += hit;
    }
    const sorted = [...items].sort(
      (a, b) => sign * (a.node.dataset[key] - b.node.dataset[key]) || a.node.dataset.index - b.node.dataset.index,
    );
    list.append(...sorted.map((item) => item.node));
    tools.querySelector("output").textContent = `${seen} of ${all}`;
    document.querySelector(".none").hidden = seen > 0;
  };
  tools.addEventListener("input", show);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  show();
})();
