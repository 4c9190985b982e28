# What the system's manager and a user's are told of the same service: how it runs, and what it is kept from where that
# needs no privileges.
#
# packMemory: MiB that packs may take.
# uploads: whether it keeps what is uploaded.
# keepsPort: whether the port must never be free, because Nix takes unsigned paths from whoever listens there.
{
  command,
  packMemory,
  uploads,
  keepsPort,
}:
let
  hardening = import ./hardening.nix;
in
{
  # What cannot start is given up soon, and its socket with it: Nix forgives a refusal that it can fall back from, but
  # would wait for minutes on a socket that nobody answers. Any user may listen on the port then; where Nix checks
  # signatures, that one can withhold paths, and see which are asked for. Where Nix does not, the service is tried for
  # ever, and the port stays held.
  unitConfig =
    if keepsPort then
      { StartLimitIntervalSec = 0; }
    else
      {
        StartLimitIntervalSec = 60;
        StartLimitBurst = 5;
      };

  # By default a socket whose service ends too often is closed, too.
  socketConfig = if keepsPort then { TriggerLimitIntervalSec = 0; } else { };

  serviceConfig = {
    Type = "notify";
    ExecStart = command;
    Restart = "on-failure";
    # The start reads the last good index from disk, and waits for nothing else.
    TimeoutStartSec = "30s";
    # Running transfers are given up after three seconds; Nix resumes them.
    TimeoutStopSec = "10s";

    # The last good index, which is served at once after a start.
    CacheDirectory = "nixcache-proxy";
    CacheDirectoryMode = "0700";

    # Packs, and room for the rest: with the default 256 MiB of packs, the whole process stays below 400 MB also where
    # clients and registry are hostile. What sockets hold counts as well, and so do pages of mapped tables, which are
    # dropped before anything is ended. No MemoryHigh: at it the one process is stalled, and every client with it.
    MemoryMax = "${toString (packMemory + 512)}M";
    # Else what is above the limit would be swapped, and the limit none.
    MemorySwapMax = 0;
    # Some 40 threads at most: the event loop's pool, that of its library, and the one that it runs in. No programs.
    TasksMax = 128;
    # Two for each client. The program raises the usual 1024 to this; a bound for it as well.
    LimitNOFILE = 65536;

    # Nobody else reads what it writes.
    UMask = "0077";
    # No code on the fly: Python compiles to bytecode, not to machine code.
    MemoryDenyWriteExecute = true;
    # What services do, less what needs privileges or claims resources.
    SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
  }
  // hardening.withoutPrivileges
  // (
    # Uploads that are not published yet: no cache, which others may empty.
    if uploads then
      {
        StateDirectory = "nixcache-proxy";
        StateDirectoryMode = "0700";
      }
    else
      { }
  )
  // (
    if keepsPort then
      # Also after wrong usage: once it has failed, the request that waits would start it at once, again and again.
      { RestartSec = "10s"; }
    else
      {
        RestartSec = "2s";
        # Wrong usage, as a setting that cannot be parsed: another try does not mend it.
        RestartPreventExitStatus = 2;
      }
  );
}
