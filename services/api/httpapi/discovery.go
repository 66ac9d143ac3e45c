package httpapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"text/template"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// metadata serves the CapabilityStatement (C-01 to C-06).
func (s *service) metadata(c *gin.Context) error {
	if !accepts(c.Request.Header, fhirJSON, plainJSON) {
		return notAcceptable(noJSON)
	}
	writeBody(c, http.StatusOK, fhirJSON, s.capabilities)
	return nil
}

// smart serves the SMART configuration for any Accept header (B-01). A deployment without a configured token URL has
// none.
func (s *service) smart(c *gin.Context) error {
	if s.smartDocument == nil {
		return refused(http.StatusNotFound, "not-found", "This server announces no token endpoint.")
	}
	writeBody(c, http.StatusOK, plainJSON, s.smartDocument)
	return nil
}

//go:embed capabilities.tmpl
var capabilities string

// newCapabilities describes the operations that this server supports, and the types that an export of the system level can
// contain with the search parameters of `_typeFilter` (C-07). Which of them a user may export depends on the grant. Of
// Group, which alone can be searched, the parameters are those of the search (L-07); the others are in the documentation.
func newCapabilities(base, tokenEndpoint string, since time.Time) []byte {
	names := func(typ string) (names []string) {
		for _, parameter := range typefilter.Parameters(typ) {
			names = append(names, parameter.Name)
		}
		return names
	}
	functions := template.FuncMap{"parameters": typefilter.Parameters, "names": names, "join": strings.Join}
	return fill(capabilities, functions, map[string]any{
		"base": base, "tokenEndpoint": tokenEndpoint, "date": since.UTC().Format(time.RFC3339),
		"version": buildinfo.Of().Version, "types": fhir.StoredTypes(),
		"operations": map[string]string{"Group": "group-export", "Patient": "patient-export"},
	})
}

// fill returns the JSON document of a template, whose function json quotes a value.
func fill(text string, functions template.FuncMap, values map[string]any) []byte {
	functions["json"] = func(value any) string { return string(encode(value)) }
	var filled, compact bytes.Buffer
	err := template.Must(template.New("").Funcs(functions).Parse(text)).Execute(&filled, values)
	if err := errors.Join(err, json.Compact(&compact, filled.Bytes())); err != nil {
		panic(err) // the template does not fit its values
	}
	compact.WriteByte('\n')
	return compact.Bytes()
}
