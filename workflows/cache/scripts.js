"use strict";
// Runs the scripts as the composite actions run theirs: inputs are variables, and no shell reads what they hold.

const { spawnSync } = require("node:child_process");
const path = require("node:path");

// The names that the program and the other scripts know.
const NAMES = { INPUT_SIGNING_KEY: "NIX_SIGNING_KEY", INPUT_TOKEN: "GITHUB_TOKEN", INPUT_REPO: "NIXCACHE_REPO" };
const SECRETS = ["NIX_SIGNING_KEY", "GITHUB_TOKEN"];

// A script beside this file; only one that withSecrets names gets the key and the token. Returns whether it succeeded.
exports.run = (name, { withSecrets = false, more = {} } = {}) => {
  const environment = { ...more, BASH_ENV: "" };
  for (const [key, value] of Object.entries(process.env)) {
    // A shell knows no names with hyphens, and would hand them on unseen.
    const plain = key.startsWith("INPUT_") ? key.replaceAll("-", "_") : key;
    environment[NAMES[plain] ?? plain] ??= value;
  }
  if (!withSecrets) for (const secret of SECRETS) delete environment[secret];
  const script = path.join(__dirname, name);
  const ended = spawnSync("bash", ["-p", script], { env: environment, stdio: ["ignore", "inherit", "inherit"] });
  if (ended.error) console.log(`::error::bash cannot be started: ${ended.error.code}`);
  return ended.status === 0;
};
