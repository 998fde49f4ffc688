// Says when the page has stopped being live, and takes away neither what somebody is selecting nor where the focus is,
// nor how far a table is scrolled.
"use strict";

const tell = (isStale) => { document.querySelector(".stale").hidden = !isStale; };
const focusable = () => [...document.querySelectorAll("#content a[href], #content button, #content [tabindex]")];
const scrollable = () => [...document.querySelectorAll("#content [tabindex][aria-labelledby]")];
const nameOf = (element) => element.getAttribute("href") ?? element.getAttribute("aria-labelledby") ?? element.textContent;
let focused = null;
let scrolled = new Map();

for (const failure of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(failure, () => tell(true));
}
document.addEventListener("htmx:beforeRequest", (event) => {
  if (!getSelection().isCollapsed) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", () => {
  const name = focusable().includes(document.activeElement) ? nameOf(document.activeElement) : null;
  const same = focusable().filter((element) => nameOf(element) === name);
  focused = name && { name, place: same.indexOf(document.activeElement) };
  scrolled = new Map(scrollable().map((element) => [nameOf(element), [element.scrollLeft, element.scrollTop]]));
});
document.addEventListener("htmx:afterSwap", () => {
  tell(false);
  for (const element of scrollable()) element.scrollTo(...(scrolled.get(nameOf(element)) ?? [0, 0]));
  if (!focused) return;
  focusable().filter((found) => nameOf(found) === focused.name)[focused.place]?.focus({ preventScroll: true });
});
