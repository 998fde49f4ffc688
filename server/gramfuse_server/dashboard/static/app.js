// Says when the page has stopped being live, and takes away neither what somebody is selecting nor where the focus is.
"use strict";

const tell = (isStale) => { document.querySelector(".stale").hidden = !isStale; };
const focusable = () => [...document.querySelectorAll("#content a[href], #content [tabindex]")];
const nameOf = (element) => element.getAttribute("href") ?? element.getAttribute("aria-labelledby");
let focused = null;

for (const failure of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(failure, () => tell(true));
}
document.addEventListener("htmx:beforeRequest", (event) => {
  if (!getSelection().isCollapsed) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", () => {
  const name = focusable().includes(document.activeElement) ? nameOf(document.activeElement) : null;
  const same = focusable().filter((element) => nameOf(element) === name);
  focused = name && { name, place: same.indexOf(document.activeElement), scrolled: document.activeElement.scrollLeft };
});
document.addEventListener("htmx:afterSwap", () => {
  tell(false);
  if (!focused) return;
  const element = focusable().filter((found) => nameOf(found) === focused.name)[focused.place];
  element?.focus({ preventScroll: true });
  if (element) element.scrollLeft = focused.scrolled;
});
