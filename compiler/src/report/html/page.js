
"use strict";
// What a shape says of itself is shown at once, beside the pointer. Titles move to an attribute, so that the browser does not show them too.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.setAttribute("data-tip", title.textContent);
  title.remove();
}
document.addEventListener("mousemove", (event) => {
  const shape = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = shape === null;
  if (shape === null) return;
  tip.textContent = shape.getAttribute("data-tip");
  const room = { x: window.innerWidth - tip.offsetWidth - 12, y: window.innerHeight - tip.offsetHeight - 12 };
  tip.style.left = Math.max(4, Math.min(event.clientX + 16, room.x)) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 16, room.y)) + "px";
});
// How large graphs are drawn.
for (const zoom of document.querySelectorAll(".zoom")) {
  zoom.hidden = false;
  const input = zoom.querySelector("input");
  const drawings = Array.from(document.querySelectorAll("svg.graph"));
  const widths = drawings.map((drawing) => [drawing.viewBox.baseVal.width, drawing.viewBox.baseVal.height]);
  input.addEventListener("input", () => {
    drawings.forEach((drawing, at) => {
      drawing.setAttribute("width", widths[at][0] * input.value / 100);
      drawing.setAttribute("height", widths[at][1] * input.value / 100);
    });
  });
}
