package platform

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Prefix begins every environment variable that a service reads.
const Prefix = "SLUICE_"

// LoadConfig fills the struct that config points to from the environment ("KEY=value" entries), by its `env` tags less
// the prefix. A variable KEY may be given as KEY_FILE instead, which names a file that holds the value: for secrets.
// Variables with the prefix that the struct does not know are errors: a typo must not be a default. All problems come
// back at once, and none quotes a value.
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
			problems = append(problems, fmt.Errorf("%s_FILE: %w", field.Key, err))
			continue
		}
		values[field.Key] = strings.TrimRight(string(content), "\r\n")
	}
	for name := range values {
		if !known[name] {
			problems = append(problems, fmt.Errorf("%s is not a setting of this service", name))
		}
	}
	err = env.ParseWithOptions(config, env.Options{Prefix: Prefix, Environment: values})
	var all env.AggregateError
	if errors.As(err, &all) {
		problems = append(problems, all.Errors...)
	} else if err != nil {
		problems = append(problems, err)
	}
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
