# What the system's manager and a user's are told of the same service: how it runs, and what it is kept from where that
# needs no privileges.
{ command }:
{
  # What cannot start is given up soon, and its socket with it: Nix forgives a refusal that it can fall back from, but
  # would wait for minutes on a socket that nobody answers.
  unitConfig = {
    StartLimitIntervalSec = 60;
    StartLimitBurst = 5;
  };

  serviceConfig = {
    Type = "notify";
    ExecStart = command;
    Restart = "on-failure";
    RestartSec = "2s";
    # Wrong usage, as a setting that cannot be parsed: another try does not mend it.
    RestartPreventExitStatus = 2;
    # The start reads the last good index from disk, and waits for nothing else.
    TimeoutStartSec = "30s";
    # Running transfers are given up after three seconds; Nix resumes them.
    TimeoutStopSec = "10s";

    # The last good index, which is served at once after a start; nothing else is ever written.
    CacheDirectory = "nixcache-proxy";
    CacheDirectoryMode = "0700";

    # No program it might be tricked to start gains what it has not.
    NoNewPrivileges = true;
    # Nobody else reads what it writes.
    UMask = "0077";
    # HTTP to clients, registry and upstreams; the manager is told over a local socket. No raw packets.
    RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
    # It makes no containers, and no code on the fly: Python compiles to bytecode, not to machine code.
    RestrictNamespaces = true;
    MemoryDenyWriteExecute = true;
    # No other instruction set's system calls, of which filters know less.
    LockPersonality = true;
    SystemCallArchitectures = "native";
    # No real-time priority, by which it could starve the machine; no files that run as somebody else.
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    # What services do, less what needs privileges or claims resources; a refused call is an error, not a death.
    SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
    SystemCallErrorNumber = "EPERM";
  };
}
