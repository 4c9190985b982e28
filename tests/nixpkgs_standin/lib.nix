let
  lib = rec {
    inherit (builtins) filter;
    trivial.release = "26.11";
    types = import ./types.nix { inherit lib; };
    inherit (import ./modules.nix { inherit lib; }) evalModules strongest;

    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: value: if condition then value else { };
    optionalString = condition: value: if condition then value else "";
    unique = builtins.foldl' (known: value: if builtins.elem value known then known else known ++ [ value ]) [ ];

    toUpper =
      let
        split = text: filter (letter: letter != "" && builtins.isString letter) (builtins.split "" text);
      in
      builtins.replaceStrings (split "abcdefghijklmnopqrstuvwxyz") (split "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    hasInfix = infix: text: builtins.length (splitString infix text) > 1;
    # Parted at characters that mean nothing to a regular expression: all that is asked for here.
    splitString = separator: text: filter builtins.isString (builtins.split separator text);

    genAttrs = names: make: builtins.listToAttrs (map (name: { inherit name; value = make name; }) names);
    filterAttrs =
      keep: set: builtins.removeAttrs set (filter (name: !keep name set.${name}) (builtins.attrNames set));
    mapAttrsToList = make: set: map (name: make name set.${name}) (builtins.attrNames set);

    literalExpression = text: { _type = "literalExpression"; inherit text; };
    literalMD = text: { _type = "literalMD"; inherit text; };
    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      name:
      mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${name}.";
      };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };
    mkOverride = priority: content: { _type = "override"; inherit priority content; };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkOrder = order: content: { _type = "order"; inherit order content; };
    mkAfter = mkOrder 1500;
  };
in
lib
