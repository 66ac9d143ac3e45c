package httpapi

import (
	_ "embed"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
)

//go:embed openapi.tmpl
var openAPI string

// openapi serves the description of this API, for any Accept header.
func (s *service) openapi(c *gin.Context) error {
	writeBody(c, http.StatusOK, plainJSON, s.description)
	return nil
}

var routeParameter = regexp.MustCompile(`:([a-z]+)`)

// newOpenAPI describes the API in OpenAPI 3.1. The kick-offs and the values of their bodies are those of the tables by
// which requests are read; tests compare the rest with the routes and the responses. Origin is the base URL without its
// path.
func newOpenAPI(base, origin string) []byte {
	names := slices.Sorted(maps.Keys(bodyValues))
	inQuery := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "patient" }) // P-25
	// refs returns references to components, in a list, or in an object by their names.
	refs := func(kind string, named bool, names ...string) string {
		var all []string
		for _, name := range strings.Fields(strings.Join(names, " ")) {
			ref := `{"$ref":"#/components/` + kind + "/" + name + `"}`
			if named {
				ref = `"` + name + `":` + ref
			}
			all = append(all, ref)
		}
		return strings.Join(all, ",")
	}
	functions := template.FuncMap{
		"path":       func(route string) string { return routeParameter.ReplaceAllString(route, "{$1}") },
		"parameters": func(names ...string) string { return `"parameters":[` + refs("parameters", false, names...) + "]" },
		"answers":    func(names string) string { return refs("responses", true, names) },
		"headers": func(names string) string {
			return `"headers":{` + refs("headers", true, "X-Request-Id X-Content-Type-Options Cache-Control", names) + "}"
		},
	}
	version := buildinfo.Of().Version
	if version == "" {
		version = "unreleased"
	}
	return fill(openAPI, functions, map[string]any{
		"base": base, "origin": origin, "version": version, "levels": kickoffLevels(), "query": strings.Join(inQuery, " "),
		"names": names, "values": bodyValues,
	})
}
