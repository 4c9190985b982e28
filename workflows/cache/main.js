"use strict";
// Installs the program, and starts what the job needs until post.js stops it.

const { createHash } = require("node:crypto");
const fs = require("node:fs");
const { run } = require("./scripts.js");

// Whose code this is, where that need not be this repository's.
function headRepository() {
  const event = JSON.parse(fs.readFileSync(process.env.GITHUB_EVENT_PATH, "utf8"));
  return event.pull_request?.head?.repo?.full_name ?? event.workflow_run?.head_repository?.full_name ?? "";
}

// The half of a secret key that is public: Nix writes name:base64 of 32 secret and 32 public bytes.
function publicKey(secret) {
  const [name, text = ""] = secret.trim().split(":");
  const bytes = Buffer.from(text, "base64");
  return bytes.length === 64 ? `${name}:${bytes.subarray(32).toString("base64")}` : "";
}

function valuesOf(value) {
  return value !== null && typeof value === "object" ? Object.values(value).flatMap(valuesOf) : [value];
}

// What later runs of this job supersede: branch, workflow, job, and the values of its matrix, one word of harmless letters.
function scope() {
  const { INPUT_MATRIX, GITHUB_REF_NAME, GITHUB_WORKFLOW_REF, GITHUB_WORKFLOW, GITHUB_JOB } = process.env;
  const workflow = GITHUB_WORKFLOW_REF?.split("@")[0].split("/").pop() || GITHUB_WORKFLOW;
  const words = [GITHUB_REF_NAME, workflow, GITHUB_JOB, ...valuesOf(JSON.parse(INPUT_MATRIX || "null") ?? [])];
  const exact = words.join("-");
  const plain = exact.replace(/[^\w.+/-]/g, "_").slice(0, 150);
  return plain === exact ? plain : `${plain}-${createHash("sha256").update(JSON.stringify(words)).digest("hex").slice(0, 8)}`;
}

const more = {
  HEAD_REPOSITORY: headRepository(),
  OWN_PUBLIC_KEY: publicKey(process.env["INPUT_SIGNING-KEY"] ?? ""),
  INPUT_SCOPE: process.env.INPUT_SCOPE || scope(),
};
const isInstalled = fs.existsSync(`${process.env.RUNNER_TEMP}/nixcache-oci/bin/nixcache-oci`);
const isDone = (isInstalled || run("../setup/install.sh")) && run("start.sh", { withSecrets: true, more });
process.exitCode = isDone ? 0 : 1;
