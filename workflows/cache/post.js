"use strict";
// Stops what main.js started.

process.exitCode = require("./scripts.js").run("stop.sh") ? 0 : 1;
