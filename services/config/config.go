// Package config holds the configuration sections that several services share, and opens what each section describes. A
// service embeds the sections it needs in one struct; nothing else reads the environment.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strings"
)

// Common is the section of every service.
type Common struct {
	TLS
	Trust
	Trace
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"` // debug, info, warn or error; JSON on stderr
	// /livez, /readyz and /metrics; on the scheduler also /scale and /operator/
	Private string `env:"PRIVATE_ADDR" envDefault:"127.0.0.1:0"`

	secrets map[string]string // files that the configuration was read from, by their variables
}

// SecretFile records a file that envconfig.Load read a secret from.
func (c *Common) SecretFile(variable, file string) {
	if c.secrets == nil {
		c.secrets = map[string]string{}
	}
	c.secrets[variable] = file
}

// secretFiles returns the files with secrets, by variable.
func (c Common) secretFiles() map[string]string {
	all := maps.Clone(c.secrets)
	if all == nil {
		all = map[string]string{}
	}
	for _, from := range []files{c.public(), c.private()} {
		if from.key != "" {
			all[from.keyName] = from.key
		}
	}
	return all
}

// Validate returns every problem of the section.
func (c Common) Validate() error {
	_, err := c.Roots()
	return errors.Join(err, c.TLS.Validate(), c.Trace.Validate())
}

// BaseURL parses a public base URL: absolute, http or https, without query, fragment, user or trailing slash.
func BaseURL(text string) (*url.URL, error) {
	base, err := url.Parse(text)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" || base.RawQuery != "" ||
		base.Fragment != "" || base.User != nil {
		return nil, fmt.Errorf("the base URL must look like https://host/fhir")
	}
	base.Path = strings.TrimRight(base.Path, "/")
	return base, nil
}
