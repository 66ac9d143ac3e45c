package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Prefix begins every environment variable that a service reads.
const Prefix = "SLUICE_"

// LoadConfig fills the struct that config points to from the environment ("KEY=value" entries), by its `env` tags
// less the prefix. A variable KEY may be given as KEY_FILE instead, which names a file that holds the value: for
// secrets. A config with a method SecretFile(variable, file string) is told of each that was read. Variables with the
// prefix that the struct does not know are errors: a typo must not be a default. All problems come back at once, and
// none quotes a value.
func LoadConfig(environ []string, config any) error {
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
			problems = append(problems, fmt.Errorf("%s_FILE: the file cannot be read: %w", field.Key, withoutPath(err)))
			continue
		}
		values[field.Key] = strings.TrimRight(string(content), "\r\n")
		// A mount that nobody has filled must not read as a secret that is not wanted: that would switch off what it is for.
		if values[field.Key] == "" {
			problems = append(problems, fmt.Errorf("%s_FILE: the file is empty", field.Key))
		}
		if told, ok := config.(interface{ SecretFile(variable, file string) }); ok {
			told.SecretFile(field.Key+"_FILE", file)
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

// parse fills the struct. The library's own errors about values that cannot be read quote them, and name the struct's
// field in place of the variable; so these are found again, a variable at a time.
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
		alone := reflect.New(reflect.TypeOf(config).Elem()).Interface()
		err := env.ParseWithOptions(alone, env.Options{Prefix: Prefix, Environment: map[string]string{field.Key: value}})
		var unread env.ParseError
		if errors.As(err, &unread) {
			problems = append(problems, fmt.Errorf("%s is not of the form of a %s", field.Key, unread.Type))
		}
	}
	return problems
}

// withoutPath is the error without the file's name: who gives a secret where its file should be named must not read
// it in a log.
func withoutPath(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
