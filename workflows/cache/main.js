"use strict";
// Installs the program, and starts what the job needs until post.js stops it.

const fs = require("node:fs");
const { run } = require("./scripts.js");

// Whose code this is, where that need not be this repository's.
function headRepository() {
  const event = JSON.parse(fs.readFileSync(process.env.GITHUB_EVENT_PATH, "utf8"));
  return event.pull_request?.head?.repo?.full_name ?? event.workflow_run?.head_repository?.full_name ?? "";
}

const more = { HEAD_REPOSITORY: headRepository() };
const isInstalled = fs.existsSync(`${process.env.RUNNER_TEMP}/nixcache-oci/bin/nixcache-oci`);
const isDone = (isInstalled || run("../setup/install.sh")) && run("start.sh", { withSecrets: true, more });
process.exitCode = isDone ? 0 : 1;
