// Package configtest holds tests that every service runs.
package configtest

import (
	"bytes"
	"context"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// secret is part of every value that is tried, and must not be part of any output.
const secret = "hunter2"

// garbage returns invalid values. The Redis is real and refuses the user, so that no test waits for a connection.
func garbage(t *testing.T) []string {
	t.Helper()
	redis, err := url.Parse(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	redis.User = url.UserPassword("u", secret)
	return append([]string{redis.String()}, unusable...)
}

var unusable = []string{
	secret,
	"redis://u:" + secret + "@127.0.0.1:1/x?" + secret + "=1",
	"rediss://u:" + secret + "@127.0.0.1:1/0?skip_verify=true",
	"postgres://u:" + secret + "@127.0.0.1:1/d?sslmode=" + secret,
	"postgres://u:" + secret + "@127.0.0.1:1/d?connect_timeout=1",
	"http://u:" + secret + "@127.0.0.1:1/?k=" + secret,
	"https://127.0.0.1:1/" + secret + "/%zz",
	"://" + secret,
	"%zz\x7f" + secret + "\n" + secret,
}

// quotable reports whether errors may quote the variable's value: paths and names are no secrets.
func quotable(variable string) bool {
	for _, end := range []string{"_ADDR", "_DIR", "_FILE", "_LOG", "S3_BUCKET"} {
		if strings.HasSuffix(variable, end) {
			return true
		}
	}
	return false
}

// Service is a service under test.
type Service struct {
	Config  any // the zero value of the service's settings
	Run     func(ctx context.Context, args, environ []string, stderr io.Writer) error
	Environ []string            // valid settings, with a real Redis
	Instead map[string][]string // settings that exclude the named one, without the prefix
}

// QuotesNothing sets each text variable of the service to garbage, as a value, in a file and as the name of a file, with
// and without --check-config; the context has ended before the start. Neither the error nor stderr may contain the
// secret.
func QuotesNothing(t *testing.T, service Service) {
	t.Helper()
	ended, end := context.WithCancel(t.Context())
	end()
	tried, values := 0, garbage(t)
	for _, variable := range variables(reflect.TypeOf(service.Config)) {
		if quotable(variable) {
			continue
		}
		tried++
		var good []string
		for _, entry := range service.Environ {
			name, _, _ := strings.Cut(strings.TrimPrefix(entry, envconfig.Prefix), "=")
			if name != variable && !slices.Contains(service.Instead[variable], name) {
				good = append(good, entry)
			}
		}
		for _, value := range values {
			file := filepath.Join(t.TempDir(), "value")
			if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, setting := range []string{"=" + value, "_FILE=" + file, "_FILE=" + value} {
				environ := append(slices.Clone(good), envconfig.Prefix+variable+setting, envconfig.Prefix+"LOG_LEVEL=debug")
				for _, args := range [][]string{{"--check-config"}, nil} {
					var stderr bytes.Buffer
					err := service.Run(ended, args, environ, &stderr)
					if err != nil {
						stderr.WriteString(err.Error())
					}
					if strings.Contains(stderr.String(), secret) {
						t.Errorf("%s%q: %s", variable, setting, &stderr)
					}
				}
			}
		}
	}
	if tried == 0 {
		t.Error("there is no variable to try")
	}
}

// variables returns the variables of a struct's text fields, without the prefix.
func variables(of reflect.Type) []string {
	var all []string
	for i := range of.NumField() {
		field := of.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
		switch {
		case name != "" && field.Type.Kind() == reflect.String:
			if name != "LOG_LEVEL" && !slices.Contains(all, name) {
				all = append(all, name)
			}
		case name == "" && field.Type.Kind() == reflect.Struct && field.IsExported():
			all = append(all, variables(field.Type)...)
		}
	}
	return all
}
