package directory

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// ParseGrants reads the entries of a YAML access file. It walks the syntax tree by hand because the library's decoder
// quotes lines with patient ids in its errors, follows anchors and converts types.
func ParseGrants(data []byte) ([]GrantEntry, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, syntaxError(err)
	}
	if len(file.Docs) != 1 {
		return nil, errors.New("must be exactly one YAML document")
	}
	list, ok := file.Docs[0].Body.(*ast.SequenceNode)
	if !ok {
		return nil, errors.New("expected a YAML list of grants (use [] for none)")
	}
	entries := make([]GrantEntry, 0, len(list.Values))
	lines := make(map[export.Owner]int, len(list.Values))
	for _, node := range list.Values {
		entry, err := readEntry(node)
		if err != nil {
			return nil, err
		}
		if first, twice := lines[entry.Owner]; twice {
			return nil, problem(node, "duplicate of the issuer and subject of line %d", first)
		}
		entries, lines[entry.Owner] = append(entries, entry), line(node)
	}
	return entries, nil
}

// syntaxError returns the line of the parser's error without its text, which quotes the file.
func syntaxError(err error) error {
	var located yaml.Error
	if errors.As(err, &located) && located.GetToken() != nil && located.GetToken().Position != nil {
		return fmt.Errorf("line %d: not valid YAML, or a duplicate key", located.GetToken().Position.Line)
	}
	return errors.New("not valid YAML")
}

func readEntry(node ast.Node) (entry GrantEntry, err error) {
	fields, err := readKeys(node, []string{"issuer", "subject", "types", "groups", "patients"}, "levels")
	if err != nil {
		return entry, err
	}
	if entry.Owner.Issuer, err = readName(fields["issuer"], "issuer"); err != nil {
		return entry, err
	}
	if entry.Owner.Subject, err = readName(fields["subject"], "subject"); err != nil {
		return entry, err
	}
	if entry.Types, err = readAllOrList(fields["types"], "types", CheckType); err != nil {
		return entry, err
	}
	if entry.Groups, err = readAllOrList(fields["groups"], "groups", CheckID); err != nil {
		return entry, err
	}
	if entry.Patients, err = readPatients(fields["patients"]); err != nil || fields["levels"] == nil {
		return entry, err
	}
	levels, err := readList(fields["levels"], "levels", CheckLevel)
	if err == nil && len(levels) == 0 {
		err = problem(fields["levels"], "%w", errNoLevels)
	}
	if err == nil {
		entry.Levels, err = ParseLevels(levels)
	}
	return entry, err
}

// readKeys reads a mapping with the given keys and no others; one key may be missing.
func readKeys(node ast.Node, names []string, optional string) (map[string]ast.Node, error) {
	fields, err := readMapping(node)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if fields[name] == nil {
			return nil, problem(node, "%s is missing", name)
		}
	}
	known := len(names)
	if fields[optional] != nil {
		known++
	}
	if len(fields) == known {
		return fields, nil
	}
	return nil, problem(node, "unknown key; the keys are %s, %s", strings.Join(names, ", "), optional)
}

func readMapping(node ast.Node) (map[string]ast.Node, error) {
	var values []*ast.MappingValueNode
	switch mapping := node.(type) {
	case *ast.MappingNode:
		values = mapping.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{mapping}
	default:
		return nil, problem(node, "not a mapping")
	}
	fields := make(map[string]ast.Node, len(values))
	for _, value := range values {
		key, ok := value.Key.(*ast.StringNode)
		if !ok || value.Value == nil {
			return nil, problem(value, "not a plain key with a value")
		}
		if fields[key.Value] != nil {
			return nil, problem(value, "duplicate key")
		}
		fields[key.Value] = value.Value
	}
	return fields, nil
}

func readName(node ast.Node, key string) (string, error) {
	name, ok := text(node)
	if !ok || name == "" {
		return "", problem(node, "%s must be a non-empty string", key)
	}
	return name, nil
}

func readAllOrList(node ast.Node, key string, check func(string) error) (NameList, error) {
	if isAll(node) {
		return NameList{All: true}, nil
	}
	names, err := readList(node, key, check)
	return NameList{Names: names}, err
}

func readPatients(node ast.Node) (NameList, error) {
	if isAll(node) {
		return NameList{All: true}, nil
	}
	fields, err := readMapping(node)
	if err != nil || len(fields) != 1 || fields["only"] == nil && fields["except"] == nil {
		return NameList{}, problem(node, "patients must be all, {only: [...]} or {except: [...]}")
	}
	if listed := fields["only"]; listed != nil {
		ids, err := readList(listed, "only", CheckID)
		return NameList{Names: ids}, err
	}
	ids, err := readList(fields["except"], "except", CheckID)
	return NameList{All: true, Names: ids}, err
}

func readList(node ast.Node, key string, check func(string) error) ([]string, error) {
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		return nil, problem(node, "%s must be a list", key)
	}
	names := make([]string, 0, len(list.Values))
	for i, value := range list.Values {
		name, ok := text(value)
		if !ok {
			return nil, problem(value, "number %d of %s is not a plain name", i+1, key)
		}
		if err := check(name); err != nil {
			return nil, problem(value, "number %d of %s %w", i+1, key, err)
		}
		names = append(names, name)
	}
	return names, nil
}

func isAll(node ast.Node) bool {
	word, ok := node.(*ast.StringNode)
	return ok && word.Value == "all"
}

// text returns a string, or a number as it is written: 007 and 1e3 are ids. Booleans and null must be quoted.
func text(node ast.Node) (string, bool) {
	switch scalar := node.(type) {
	case *ast.StringNode:
		return scalar.Value, true
	case *ast.IntegerNode, *ast.FloatNode:
		return scalar.GetToken().Value, true
	}
	return "", false
}

func problem(node ast.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %w", line(node), fmt.Errorf(format, args...))
}

func line(node ast.Node) int {
	if node == nil || node.GetToken() == nil || node.GetToken().Position == nil {
		return 0
	}
	return node.GetToken().Position.Line
}
