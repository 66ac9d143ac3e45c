// Package configtest has the tests that every service owes.
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

// secret is in every value that is tried, and may be in nothing that is said.
const secret = "hunter2"

// garbage returns values that are nearly right, wrong, or hardly text. The Redis is a real one, which refuses the user:
// nobody has to wait for one that is not there.
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

// quotable are variables whose values errors may quote: paths and names, which are no secrets.
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
	Config  any // the service's struct, without any value
	Run     func(ctx context.Context, args, environ []string, stderr io.Writer) error
	Environ []string            // settings that are good, with that of a real Redis
	Instead map[string][]string // settings that have to go when the one named is given, without the prefix
}

// QuotesNothing tries each text variable of the service with garbage, as a value, as what a file holds and as the name
// of one, with --check-config and without; the service is stopped before it starts. The garbage may be neither in
// its error nor on its stderr.
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

// variables are those of a struct's text fields, without the prefix.
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
