// Adds a button to each block that is there to be copied; the page works without.
"use strict";

function select(block) {
  const range = document.createRange();
  range.selectNodeContents(block);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

async function copy(block) {
  try {
    await navigator.clipboard.writeText(block.textContent);
    return "Copied";
  } catch {
    // No permission, or an address that is not this machine's: then one key is left to press.
    select(block);
    return "Selected";
  }
}

for (const block of document.querySelectorAll("[data-copy]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  const told = document.createElement("span");
  told.className = "hidden";
  told.setAttribute("role", "status");
  button.addEventListener("click", async () => {
    button.textContent = told.textContent = await copy(block);
    setTimeout(() => {
      button.textContent = "Copy";
      told.textContent = "";
    }, 2000);
  });
  block.parentElement.append(button, told);
}
