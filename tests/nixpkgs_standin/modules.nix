# The module system, as far as the tests need it: imports, options with types and defaults, conditions, merges,
# priorities and order. What is defined without having been declared is an error, as in the real one.
{ lib }:
let
  typeOf = value: if builtins.isAttrs value then value._type or "set" else "plain";

  # A module in whatever form it is written, and all that it imports: [ { options, config } ].
  load =
    arguments: module:
    let
      written = if builtins.isAttrs module || builtins.isFunction module then module else import module;
      # What nobody gave by name is one of _module.args, which may depend on the configuration: looked up when used.
      asked = builtins.mapAttrs (
        name: _: arguments.${name} or arguments.config._module.args.${name}
      ) (builtins.functionArgs written);
      called = if builtins.isFunction written then written (arguments // asked) else written;
      isFull = called ? options || called ? config;
      rest = builtins.removeAttrs called [ "imports" "options" "config" "_file" "key" ];
    in
    if isFull && rest != { } then
      throw "a module has options or config, and ${toString (builtins.attrNames rest)} beside them"
    else
      builtins.concatMap (load arguments) (called.imports or [ ])
      ++ [
        {
          options = called.options or { };
          config = if isFull then called.config or { } else rest;
        }
      ];

  # Conditions and priorities of a set become those of its members, so that which members there are depends on neither.
  pushDown =
    value:
    let
      each = wrap: map (builtins.mapAttrs (_: wrap)) (pushDown value.content);
    in
    {
      "if" = each (lib.mkIf value.condition);
      merge = builtins.concatMap pushDown value.contents;
      override = each (lib.mkOverride value.priority);
      order = each (lib.mkOrder value.order);
    }
    .${typeOf value} or [ value ];

  # The plain values of one definition: [ { value, priority, order } ].
  discharge =
    value:
    {
      "if" = if value.condition then discharge value.content else [ ];
      merge = builtins.concatMap discharge value.contents;
      override = map (found: found // { inherit (value) priority; }) (discharge value.content);
      order = map (found: found // { inherit (value) order; }) (discharge value.content);
    }
    .${typeOf value} or [
      {
        inherit value;
        priority = 100;
        order = 1000;
      }
    ];

  # The values that count: of the strongest priority, in order.
  strongest =
    definitions:
    let
      found = builtins.concatMap discharge definitions;
      best = builtins.foldl' (least: one: if one.priority < least then one.priority else least) 9999 found;
    in
    map (one: one.value) (
      builtins.sort (a: b: a.order < b.order) (builtins.filter (one: one.priority == best) found)
    );

  valueOf =
    path: option: definitions:
    let
      default = lib.optional (option ? default) (lib.mkOverride 1500 option.default);
      values = strongest (definitions ++ default);
      wrong = builtins.filter (value: !option.type.check value) values;
    in
    if values == [ ] then
      throw "The option `${path}' is used but not defined."
    else if wrong != [ ] then
      throw "A definition for option `${path}' is not of type `${option.type.description}'."
    else
      option.type.merge path values;

  isOption = value: typeOf value == "option";

  # trees: sets of options from all modules; configs: sets of definitions from all modules.
  evaluate =
    path: trees: configs:
    let
      sets = builtins.concatMap pushDown configs;
      declared = builtins.foldl' (all: tree: all // tree) { } trees;
      undeclared = builtins.removeAttrs (builtins.foldl' (all: set: all // set) { } sets) (builtins.attrNames declared);
      having = name: builtins.filter (set: set ? ${name});
      member =
        name: _:
        let
          inner = if path == "" then name else "${path}.${name}";
          options = map (tree: tree.${name}) (having name trees);
          definitions = map (set: set.${name}) (having name sets);
        in
        if builtins.any isOption options then
          valueOf inner (builtins.head (builtins.filter isOption options)) definitions
        else
          evaluate inner options definitions;
    in
    if undeclared != { } then
      throw "The option `${path}.${builtins.head (builtins.attrNames undeclared)}' does not exist."
    else
      builtins.mapAttrs member declared;
in
{
  inherit strongest;

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      loaded = builtins.concatMap (load ({ inherit lib config; } // specialArgs)) modules;
      arguments._module.args = lib.mkOption {
        type = lib.types.anything;
        default = { };
      };
      config = evaluate "" ([ arguments ] ++ map (module: module.options) loaded) (
        map (module: module.config) loaded
      );
    in
    {
      inherit config;
    };
}
