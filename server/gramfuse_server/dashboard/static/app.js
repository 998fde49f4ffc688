// Says when the page has stopped being live, and does not take away what somebody is selecting.
"use strict";

const tell = (isStale) => { document.querySelector(".stale").hidden = !isStale; };

for (const failure of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(failure, () => tell(true));
}
document.addEventListener("htmx:afterSwap", () => tell(false));
document.addEventListener("htmx:beforeRequest", (event) => {
  if (!getSelection().isCollapsed) event.preventDefault();
});
