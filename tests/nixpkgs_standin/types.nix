# A type: whether a value is of it, what it is called, and how several definitions become one.
{ lib }:
let
  same =
    path: values:
    if builtins.all (value: value == builtins.head values) values then
      builtins.head values
    else
      throw "The option `${path}' has conflicting definition values.";
  simple = description: check: {
    inherit description check;
    merge = same;
  };
  # Members are definitions of their own: conditions and priorities are allowed inside of a set.
  mergeSets =
    type: path: sets:
    let
      names = builtins.attrNames (builtins.foldl' (all: set: all // set) { } sets);
      values = name: lib.strongest (map (set: set.${name}) (builtins.filter (set: set ? ${name}) sets));
    in
    lib.genAttrs (builtins.filter (name: values name != [ ]) names) (
      name: type.merge "${path}.${name}" (values name)
    );
  isPlainSet = value: builtins.isAttrs value && !(value ? outPath);
in
rec {
  bool = simple "boolean" builtins.isBool;
  str = simple "string" builtins.isString;
  lines = str // {
    merge = _: builtins.concatStringsSep "\n";
  };
  int = simple "signed integer" builtins.isInt;
  port = simple "16 bit unsigned integer" (value: builtins.isInt value && value >= 0 && value <= 65535);
  ints = {
    unsigned = simple "unsigned integer" (value: builtins.isInt value && value >= 0);
    positive = simple "positive integer" (value: builtins.isInt value && value > 0);
    between =
      lowest: highest:
      simple "integer between ${toString lowest} and ${toString highest} (both inclusive)" (
        value: builtins.isInt value && value >= lowest && value <= highest
      );
  };
  path = simple "path" (value: builtins.substring 0 1 (toString value) == "/");
  package = simple "package" (value: value ? outPath);
  enum = values: simple "one of ${builtins.toJSON values}" (value: builtins.elem value values);
  strMatching =
    pattern:
    simple "string matching ${pattern}" (value: builtins.isString value && builtins.match pattern value != null);
  either =
    one: other: simple "${one.description} or ${other.description}" (value: one.check value || other.check value);
  nullOr =
    type:
    simple "null or ${type.description}" (value: value == null || type.check value)
    // {
      merge = path: values: if builtins.elem null values then same path values else type.merge path values;
    };
  listOf = type: {
    description = "list of ${type.description}";
    check = value: builtins.isList value && builtins.all type.check value;
    merge = _: builtins.concatLists;
  };
  attrsOf = type: {
    description = "attribute set of ${type.description}";
    # Members may be conditions, so that their type shows only when they are merged.
    check = isPlainSet;
    merge =
      path: sets:
      builtins.mapAttrs (
        name: value:
        if type.check value then
          value
        else
          throw "A definition for option `${path}.${name}' is not of type `${type.description}'."
      ) (mergeSets type path sets);
  };
  submodule = module: {
    description = "submodule";
    check = isPlainSet;
    merge =
      _: sets:
      builtins.removeAttrs (lib.evalModules { modules = [ module ] ++ map (config: { inherit config; }) sets; }).config [
        "_module"
      ];
  };
  anything = {
    description = "anything";
    check = _: true;
    merge =
      path: values:
      if builtins.all isPlainSet values then
        mergeSets anything path values
      else if builtins.all builtins.isList values then
        builtins.concatLists values
      else
        same path values;
  };
}
