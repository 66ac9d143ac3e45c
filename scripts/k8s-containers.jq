# Reads a List of Deployments, Jobs, ConfigMaps and Secrets. Prints, for each container that runs a program of our image,
# {name, command, env, files}: what the kubelet would give it, with paths below the folder $root. A reference to a missing
# object or key is an error.

# Paths that volumes are mounted at.
def below: gsub("(?<path>/etc/sluice|/sample)(?=/|$)"; $root + .path);

.items as $items
| def data($kind; $name):
    first($items[] | select(.kind == $kind and .metadata.name == $name) | .data) // error("no \($kind) \($name)")
    | if $kind == "Secret" then map_values(@base64d) else . end;

  # The files that a source of a volume holds, by path: those of `items`, or all.
  def files($kind; $name):
    data($kind; $name) as $data
    | if .items then
        .items | map({key: .path, value: ($data[.key] // error("\($kind) \($name) has no key \(.key)"))}) | from_entries
      else $data end;
  def volume:
    if .secret then .secret | files("Secret"; .secretName)
    elif .configMap then .configMap | files("ConfigMap"; .name)
    elif .projected then
      reduce .projected.sources[] as $source ({};
        . + ($source | if .secret then .secret | files("Secret"; .name) else .configMap | files("ConfigMap"; .name) end))
    else {} end;

  $items[] | select(.kind == "Deployment" or .kind == "Job") | .metadata.name as $workload
| .spec.template.spec as $pod | $pod | (.initContainers[]?, .containers[])
| select(.image | test("(^|/)sluice:"))
| {
    name: "\($workload)/\(.name)",
    command: (.command + (.args // []) | map(below)),
    env: (
      (reduce .envFrom[]? as $from ({}; . + data("ConfigMap"; $from.configMapRef.name)))
      + ([.env[]? | {key: .name, value}] | from_entries)
      | map_values(below)
    ),
    files: (
      [.volumeMounts[]? as $mount
       | $pod.volumes[] | select(.name == $mount.name) | volume | to_entries[]
       | {key: ("\($mount.mountPath)/\(.key)" | below), value: (.value | below)}] | from_entries
    )
  }
