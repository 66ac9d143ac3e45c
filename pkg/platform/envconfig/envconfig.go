// Package envconfig loads a service's configuration from environment variables and from the files that they name.
package envconfig

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// Prefix begins every environment variable that a service reads.
const Prefix = "SLUICE_"

// Load fills the struct that config points to from environ ("KEY=value" entries), by its `env` tags without the prefix. A
// secret KEY may be given as KEY_FILE instead, the name of a file with the value; config's method SecretFile(variable, file
// string), if it has one, is called for each such file. Unknown variables with the prefix are errors: a typo must not
// silently select a default. If config has a method Validate() error, it runs last. Load returns all problems in one error,
// which contains no values.
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
	known := map[string]bool{}
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
		values[field.Key] = strings.TrimRight(string(content), "\r\n")
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
	problems = append(problems, parse(config, values, fields)...)
	if checked, ok := config.(interface{ Validate() error }); ok && len(problems) == 0 {
		if err := checked.Validate(); err != nil {
			problems = append(problems, err)
		}
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

// parse fills the struct. The library's parse errors contain the value, and the struct's field in place of the
// variable, so parse finds the problems again, one variable at a time.
func parse(config any, values map[string]string, fields []env.FieldParams) []error {
	err := env.ParseWithOptions(config, env.Options{Prefix: Prefix, Environment: values})
	if err == nil {
		return nil
	}
	all := env.AggregateError{Errors: []error{err}}
	_ = errors.As(err, &all)
	var problems []error
	for _, problem := range all.Errors {
		if !errors.As(problem, new(env.ParseError)) {
			problems = append(problems, problem)
		}
	}
	for _, field := range fields {
		value, given := values[field.Key]
		if !given {
			continue
		}
		single := reflect.New(reflect.TypeOf(config).Elem()).Interface()
		err := env.ParseWithOptions(single, env.Options{Prefix: Prefix, Environment: map[string]string{field.Key: value}})
		var invalid env.ParseError
		if errors.As(err, &invalid) {
			problems = append(problems, fmt.Errorf("%s is not a valid %s", field.Key, invalid.Type))
		}
	}
	return problems
}
