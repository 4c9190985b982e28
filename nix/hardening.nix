# What the services of NixOS are kept from, the proxy's and the queue's.
{
  # What the system's manager and a user's can do.
  withoutPrivileges = {
    # No program it might be tricked to start gains what it has not.
    NoNewPrivileges = true;
    # HTTP to clients, registry and upstreams; the manager is told over a local socket. No raw packets.
    RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
    # It makes no containers.
    RestrictNamespaces = true;
    # No other instruction set's system calls, of which filters know less.
    LockPersonality = true;
    SystemCallArchitectures = "native";
    # No real-time priority, by which it could starve the machine; no files that run as somebody else.
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    # A refused call is an error, not a death.
    SystemCallErrorNumber = "EPERM";
  };

  # What only the system's manager can do.
  withPrivileges = {
    # A user of its own that exists while the service runs, and owns nothing but its own folders.
    DynamicUser = true;
    # Nothing needs a capability: the manager opens the port, also a low one.
    CapabilityBoundingSet = "";
    AmbientCapabilities = "";
    # It writes to its own folders only.
    ProtectSystem = "strict";
    # It leaves no files in /tmp, and trusts none there.
    PrivateTmp = true;
    # Mounts made here are seen nowhere else.
    PrivateMounts = true;
    # It reads and writes sockets and files, never hardware.
    PrivateDevices = true;
    DevicePolicy = "closed";
    # It changes no kernel settings, loads no modules, reads no kernel log, sets no clock, name or control group.
    ProtectKernelTunables = true;
    ProtectKernelModules = true;
    ProtectKernelLogs = true;
    ProtectClock = true;
    ProtectHostname = true;
    ProtectControlGroups = true;
    # Shared memory and keys of the kernel end with the service, and are no one else's.
    RemoveIPC = true;
    KeyringMode = "private";
  };
}
