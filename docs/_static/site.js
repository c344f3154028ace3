// What scrolls sideways can be scrolled with the keyboard, too.
const reachable = () =>
  document.querySelectorAll("pre, .table-wrapper, .formula").forEach((box) =>
    box.scrollWidth > box.clientWidth ? (box.tabIndex = 0) : box.removeAttribute("tabindex"));
addEventListener("load", reachable);
addEventListener("resize", reachable);
