package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
)

// information is the text that --help and --version ask for. Main prints it to standard output.
type information struct{ text string }

func (information) Error() string { return "nothing was started" }

// checkConfig reports everything that is wrong with the settings and with the files that they name.
func checkConfig[Settings any](service string, environ []string, stderr io.Writer) error {
	var settings Settings
	err := envconfig.Load(environ, &settings)
	// Files of data and groups are opened by the start, so only here.
	if checked, ok := any(&settings).(interface{ CheckFiles() error }); ok {
		if filesErr := checked.CheckFiles(); filesErr != nil {
			err = errors.Join(err, fmt.Errorf("files:\n%w", filesErr))
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "%s: the configuration is valid\n", service)
	return err
}

// help returns the help of a service, with the variables of its settings.
func help[Settings any](service, about string, flags *flag.FlagSet) error {
	var text strings.Builder
	fmt.Fprintf(&text, "Usage: %s [--check-config | --check-health | --version]\n\n%s\n\nFlags:\n", service, about)
	flags.VisitAll(func(f *flag.Flag) { fmt.Fprintf(&text, "  --%-13s %s\n", f.Name, f.Usage) })
	settings, err := envconfig.Settings(new(Settings))
	if err != nil {
		return err
	}
	text.WriteString("\nIt reads these variables, each also as NAME_FILE with the name of a file that holds it. Their\n" +
		"meanings are in docs/configuration.md (https://github.com/sluice-fhir/sluice/blob/main/docs/configuration.md).\n\n")
	for _, required := range []bool{true, false} {
		for _, s := range settings {
			if s.Required != required {
				continue
			}
			value := s.Default
			if required {
				value = "(required)"
			}
			text.WriteString(strings.TrimRight(fmt.Sprintf("  %-34s %s", s.Variable, value), " ") + "\n")
		}
	}
	return information{text.String()}
}
