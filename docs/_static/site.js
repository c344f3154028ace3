// What scrolls sideways can be scrolled with the keyboard, too.
const reachable = () =>
  document.querySelectorAll("pre, .table-wrapper, .formula, p:has(> .picture)").forEach((box) =>
    box.scrollWidth > box.clientWidth ? (box.tabIndex = 0) : box.removeAttribute("tabindex"));
addEventListener("load", reachable);
addEventListener("resize", reachable);
// The search marks its words in the titles of a picture's shapes, too, and asks where these are.
SVGElement.prototype.getBBox ??= () => ({ x: 0, y: 0, width: 0, height: 0 });
