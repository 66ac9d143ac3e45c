// Package envconfig loads a service's configuration from environment variables and from the files that they name.
package envconfig

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// Prefix begins every environment variable that a service reads.
const Prefix = "SLUICE_"

// Load fills the struct that config points to from environ ("KEY=value" entries), by its `env` tags without the prefix. A
// secret KEY may be given as KEY_FILE instead, the name of a file with the value; config's method SecretFile(variable, file
// string), if it has one, is called for each such file. Unknown variables with the prefix are errors: a typo must not
// silently select a default. If config has a method Validate() error, it runs last, also when there are other problems:
// of its problems those are left out that name a variable with a problem of its own. Load returns all problems in one
// error. It quotes only values that are not of a variable's type, and no value that may be a secret.
func Load(environ []string, config any) error {
	values := map[string]string{}
	var problems []error
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, Prefix) {
			values[name] = value
		}
	}
	fields, err := env.GetFieldParamsWithOptions(config, env.Options{Prefix: Prefix})
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	known, read := map[string]bool{}, map[string]bool{}
	for _, field := range fields {
		known[field.Key] = true
		file, given := values[field.Key+"_FILE"]
		if !given {
			continue
		}
		delete(values, field.Key+"_FILE")
		if _, both := values[field.Key]; both {
			problems = append(problems, fmt.Errorf("%s and %s_FILE are both set", field.Key, field.Key))
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s_FILE: the file cannot be read: %w", field.Key, configfile.WithoutPath(err)))
			continue
		}
		values[field.Key], read[field.Key] = strings.TrimRight(string(content), "\r\n"), true
		// An empty mount must not be mistaken for an unset secret: that would disable what the secret protects.
		if values[field.Key] == "" {
			problems = append(problems, fmt.Errorf("%s_FILE: the file is empty", field.Key))
		}
		if notified, ok := config.(interface{ SecretFile(variable, file string) }); ok {
			notified.SecretFile(field.Key+"_FILE", file)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !known[name] {
			problems = append(problems, fmt.Errorf("%s is not a setting of this service", name))
		}
	}
	problems = append(problems, others(errors.Join(parse(config, values, fields, read)...), problems)...)
	if checked, ok := config.(interface{ Validate() error }); ok {
		problems = append(problems, others(checked.Validate(), problems)...)
	}
	if len(problems) > 0 {
		return fmt.Errorf("configuration:\n%w", errors.Join(problems...))
	}
	return nil
}

// Defaults returns a T with the defaults of its tags. It panics if a tag does not parse.
func Defaults[T any]() T {
	config, err := env.ParseAsWithOptions[T](env.Options{Prefix: Prefix, Environment: map[string]string{}})
	if err != nil {
		panic(err)
	}
	return config
}

// Setting is a variable of a configuration.
type Setting struct {
	Variable, Default string
	Required          bool
}

// Settings returns the variables that Load reads for config, in the order of the struct and without duplicates.
func Settings(config any) ([]Setting, error) {
	fields, err := env.GetFieldParamsWithOptions(config, env.Options{Prefix: Prefix})
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var settings []Setting
	for _, field := range fields {
		if !slices.ContainsFunc(settings, func(s Setting) bool { return s.Variable == field.Key }) {
			settings = append(settings, Setting{field.Key, field.DefaultValue, field.Required})
		}
	}
	return settings, nil
}

// others returns the parts of a joined error that name no variable of the problems.
func others(err error, problems []error) (rest []error) {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // not of a wrapped one
		for _, part := range joined.Unwrap() {
			rest = append(rest, others(part, problems)...)
		}
		return rest
	}
	named := variable.FindAllString(err.Error(), -1)
	for _, problem := range problems {
		for _, name := range variable.FindAllString(problem.Error(), -1) {
			if slices.Contains(named, name) || slices.Contains(named, strings.TrimSuffix(name, "_FILE")) {
				return nil
			}
		}
	}
	return []error{err}
}

var variable = regexp.MustCompile(`\b` + Prefix + `[A-Z0-9_]+`)

// parse fills the struct. A field whose value is missing or malformed gets its default. The library's parse errors have the
// struct's field in place of the variable, so parse finds them again, one variable at a time.
func parse(config any, values map[string]string, fields []env.FieldParams, read map[string]bool) (problems []error) {
	good := maps.Clone(values)
	for _, field := range fields {
		value, given := values[field.Key]
		if !given {
			continue
		}
		single := reflect.New(reflect.TypeOf(config).Elem()).Interface()
		err := env.ParseWithOptions(single, env.Options{Prefix: Prefix, Environment: map[string]string{field.Key: value}})
		var invalid env.ParseError
		if !errors.As(err, &invalid) {
			continue
		}
		if _, reported := good[field.Key]; reported { // two fields may have one variable
			problems = append(problems, malformed(field.Key, value, invalid.Type, read[field.Key]))
		}
		delete(good, field.Key)
	}
	all := env.AggregateError{}
	err := env.ParseWithOptions(config, env.Options{Prefix: Prefix, Environment: good})
	if err != nil && !errors.As(err, &all) {
		all.Errors = []error{err}
	}
	missing := map[string]bool{}
	for _, problem := range all.Errors {
		var unset env.VarIsNotSetError
		var empty env.EmptyVarError
		switch {
		case errors.As(problem, &unset):
			missing[unset.Key] = true
		case errors.As(problem, &empty):
			missing[empty.Key] = true
		default:
			problems = append(problems, problem)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		value, given := values[name]
		switch {
		case !given:
			problems = append(problems, fmt.Errorf("%s is required", name))
		case value == "":
			problems = append(problems, fmt.Errorf("%s must not be empty", name))
		} // else it is malformed
	}
	return problems
}

// malformed is the error of a value that is not of its variable's type.
func malformed(name, value string, typ reflect.Type, secret bool) error {
	want := "a valid " + typ.String()
	switch reflect.New(typ).Interface().(type) {
	case *time.Duration:
		want = "a duration, such as 90s, 10m or 2h"
	case *slog.Level:
		want = "debug, info, warn or error"
	case *netip.Prefix, *[]netip.Prefix:
		want = "networks, such as 10.0.0.0/8,fd00::/8"
	case *int, *int64:
		want = "a whole number"
	case *float64:
		want = "a number"
	case *bool:
		want = "true or false"
	}
	for _, word := range []string{"SECRET", "KEY", "PASSWORD", "TOKEN", "URL", "HEADERS"} {
		secret = secret || strings.Contains(name, word)
	}
	if secret || len(value) > 64 {
		return fmt.Errorf("%s must be %s", name, want)
	}
	return fmt.Errorf("%s must be %s, not %q", name, want, value)
}
