package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// modules is the import path of the root of the repository.
const modules = "github.com/sluice-fhir/sluice/"

// page is how a comment names a page of docs/, where the table is.
var page = regexp.MustCompile(`docs/([a-z-]+\.md)`)

// setting is one row of the table. Services that describe a variable alike share a row.
type setting struct{ variable, fallback, text string }

// table returns the rows of all settings of the services, whose folders are below dir.
func table(dir string, services ...string) ([]byte, error) {
	usedBy := map[setting][]string{}
	for _, service := range services {
		settings := map[string]setting{}
		if err := collect(settings, path.Join(dir, service), "settings"); err != nil {
			return nil, err
		}
		for _, s := range settings {
			usedBy[s] = append(usedBy[s], service)
		}
	}
	var rows bytes.Buffer
	rows.WriteString("| variable | services | default | meaning |\n|---|---|---|---|\n")
	for _, s := range slices.SortedFunc(maps.Keys(usedBy), func(a, b setting) int {
		return cmp.Or(cmp.Compare(a.variable, b.variable), cmp.Compare(usedBy[a][0], usedBy[b][0]))
	}) {
		users := strings.Join(usedBy[s], ", ")
		if len(usedBy[s]) == len(services) {
			users = "all"
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s | %s |\n", s.variable, users, s.fallback, s.text)
	}
	return rows.Bytes(), nil
}

// collect adds the settings of the named struct, which the Go files of a folder declare, and of those embedded in it.
func collect(settings map[string]setting, dir, name string) error {
	file, found, err := find(dir, name)
	if err != nil {
		return err
	}
	var problems []error
	for _, field := range found.Fields.List {
		if len(field.Names) == 0 {
			problems = append(problems, collectEmbedded(settings, dir, file, field.Type))
			continue
		}
		if field.Tag == nil {
			continue
		}
		raw, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			return fmt.Errorf("%s.%s: %w", dir, name, err)
		}
		tag := reflect.StructTag(raw)
		variable, options, _ := strings.Cut(tag.Get("env"), ",")
		if variable == "" {
			continue
		}
		text := strings.Join(strings.Fields(field.Doc.Text()+field.Comment.Text()), " ")
		s := setting{variable: variable, fallback: "none", text: page.ReplaceAllString(text, "[$1]($1)")}
		if value, given := tag.Lookup("envDefault"); given {
			s.fallback = "`" + value + "`"
		} else if strings.Contains(options, "required") {
			s.fallback = "required"
		} else if typ := types.ExprString(field.Type); typ == "bool" {
			s.fallback = "`false`"
		} else if typ == "int" {
			s.fallback = "`0`"
		}
		if s.text == "" || strings.Contains(s.text, "|") {
			problems = append(problems, fmt.Errorf("%s.%s: %s has no comment that fits into a table", dir, name, variable))
		}
		settings[variable] = s
	}
	return errors.Join(problems...)
}

// collectEmbedded follows an embedded struct to its folder.
func collectEmbedded(settings map[string]setting, dir string, file *ast.File, typ ast.Expr) error {
	switch typ := typ.(type) {
	case *ast.Ident:
		return collect(settings, dir, typ.Name)
	case *ast.SelectorExpr:
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if pkg, ok := typ.X.(*ast.Ident); ok && path.Base(imported) == pkg.Name {
				return collect(settings, strings.TrimPrefix(imported, modules), typ.Sel.Name)
			}
		}
	}
	return fmt.Errorf("%s: an embedded field cannot be followed", dir)
}

// find returns the struct of that name in a folder's package, and the file that it is in.
func find(dir, name string) (*ast.File, *ast.StructType, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, nil, err
	}
	for _, each := range names {
		if strings.HasSuffix(each, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), each, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, nil, err
		}
		var found *ast.StructType
		ast.Inspect(file, func(node ast.Node) bool {
			if spec, ok := node.(*ast.TypeSpec); ok && spec.Name.Name == name {
				found, _ = spec.Type.(*ast.StructType)
			}
			return found == nil
		})
		if found != nil {
			return file, found, nil
		}
	}
	return nil, nil, fmt.Errorf("%s declares no struct %s", dir, name)
}
