package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Routes that tell a client, before it has a token, what there is and where tokens are given.
const (
	metadataRoute = "/metadata"
	smartRoute    = "/.well-known/smart-configuration"
)

// document is a JSON answer that is the same for everybody for as long as the process runs.
type document struct {
	contentType string
	body        []byte
}

func newDocument(contentType string, value any) document {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err) // it is made of strings and lists of them
	}
	return document{contentType, body.Bytes()}
}

func (d document) serve(c *gin.Context) {
	c.Header("Content-Type", d.contentType)
	c.Header("Content-Length", strconv.Itoa(len(d.body)))
	c.Status(http.StatusOK)
	writeBody(c, d.body)
}

// metadata serves the CapabilityStatement (C-01 to C-06).
func (s *service) metadata(c *gin.Context) error {
	if !accepts(c.Request.Header, fhirJSON, "application/json") {
		return refusal{
			status: http.StatusNotAcceptable, code: "not-supported",
			text: "The header Accept allows neither application/fhir+json nor application/json.",
		}
	}
	s.capabilities.serve(c)
	return nil
}

// smart serves the SMART configuration, whatever the client accepts (B-01). A deployment whose clients get their
// tokens elsewhere has none.
func (s *service) smart(c *gin.Context) error {
	if s.smartDocument.body == nil {
		return s.noRoute(c)
	}
	s.smartDocument.serve(c)
	return nil
}

type (
	capabilityStatement struct {
		ResourceType   string           `json:"resourceType"`
		Status         string           `json:"status"`
		Date           string           `json:"date"`
		Kind           string           `json:"kind"`
		Software       software         `json:"software"`
		Implementation implementation   `json:"implementation"`
		FHIRVersion    string           `json:"fhirVersion"`
		Format         []string         `json:"format"`
		Instantiates   []string         `json:"instantiates"`
		REST           []restCapability `json:"rest"`
	}
	software struct {
		Name    string `json:"name"`
		Version string `json:"version,omitempty"`
	}
	implementation struct {
		Description string `json:"description"`
		URL         string `json:"url"`
	}
	restCapability struct {
		Mode     string               `json:"mode"`
		Security securityCapability   `json:"security"`
		Resource []resourceCapability `json:"resource"`
	}
	securityCapability struct {
		Extension []extension       `json:"extension,omitempty"`
		Service   []codeableConcept `json:"service"`
	}
	codeableConcept struct {
		Coding []coded `json:"coding"`
	}
	coded struct {
		System string `json:"system"`
		Code   string `json:"code"`
	}
	extension struct {
		URL       string      `json:"url"`
		Extension []extension `json:"extension,omitempty"`
		ValueURI  string      `json:"valueUri,omitempty"`
	}
	resourceCapability struct {
		Type      string                `json:"type"`
		Operation []operationCapability `json:"operation,omitempty"`
	}
	operationCapability struct {
		Name       string `json:"name"`
		Definition string `json:"definition"`
	}
)

// newCapabilities describes what this server does and nothing that it does not: of the three levels of export there is
// that of the group.
func newCapabilities(base, tokenEndpoint string, since time.Time) capabilityStatement {
	const groupExport = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export"
	security := securityCapability{Service: []codeableConcept{{Coding: []coded{{
		System: "http://terminology.hl7.org/CodeSystem/restful-security-service", Code: "SMART-on-FHIR",
	}}}}}
	if tokenEndpoint != "" {
		// Clients of the first edition of SMART look for the token endpoint here (C-05).
		security.Extension = []extension{{
			URL:       "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
			Extension: []extension{{URL: "token", ValueURI: tokenEndpoint}},
		}}
	}
	// Two names for one operation: test suites differ in which they look for (C-04).
	resources := []resourceCapability{{Type: "Group", Operation: []operationCapability{
		{Name: "export", Definition: groupExport}, {Name: "group-export", Definition: groupExport},
	}}}
	for _, typ := range fhir.ExportableTypes() {
		resources = append(resources, resourceCapability{Type: typ})
	}
	var version string
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	return capabilityStatement{
		ResourceType: "CapabilityStatement", Status: "active", Date: since.UTC().Format(time.RFC3339), Kind: "instance",
		Software:       software{Name: "Sluice", Version: version},
		Implementation: implementation{Description: "FHIR Bulk Data export of groups of patients", URL: base},
		FHIRVersion:    "4.0.1", Format: []string{fhirJSON},
		Instantiates: []string{"http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"},
		REST:         []restCapability{{Mode: "server", Security: security, Resource: resources}},
	}
}
