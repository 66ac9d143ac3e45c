package bulkclient

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Request is what to export. The JSON is part of the record of a folder and of a Report.
type Request struct {
	Level export.Level `json:"level,omitempty"` // empty: that of a group
	Group string       `json:"group,omitempty"` // the Group's id, at the group level
	Types []string     `json:"types,omitempty"` // resource types; none: every type that the token allows
	Since string       `json:"since,omitempty"` // an instant: only what changed later
	Until string       `json:"until,omitempty"` // an instant: only what changed earlier
	// Elements are root elements such as id and Patient.name; none: resources are whole.
	Elements []string `json:"elements,omitempty"`
	// TypeFilters are queries such as Observation?status=final, not percent-encoded; several of a type are alternatives.
	TypeFilters []string `json:"typeFilters,omitempty"`
	// Associated is the value of includeAssociatedData; "": every Provenance of the exported patients (P-30).
	Associated export.Associated `json:"includeAssociatedData,omitempty"`
	// OrganizeBy is organizeOutputBy: files have blocks of lines, one for each resource of this type; "": by type.
	OrganizeBy string `json:"organizeOutputBy,omitempty"`
	// Lenient lets the server ignore what it does not support; it reports that in its error files.
	Lenient bool `json:"lenient,omitempty"`
	// Patients are the ids that the export is limited to; none: it is not limited. They are sent by POST (P-22, P-25).
	Patients []string `json:"-"`
	Post     bool     `json:"-"` // send a Parameters resource instead of a query
}

// patientList identifies the Patients of a request. A folder does not keep their ids a second time.
type patientList struct {
	Count  int    `json:"count"`
	SHA256 string `json:"sha256"` // of the ids, sorted, one a line, in hex
}

// sorted returns the request with its lists sorted, and without duplicates.
func (r Request) sorted() Request {
	for _, list := range []*[]string{&r.Types, &r.Elements, &r.TypeFilters, &r.Patients} {
		*list = slices.Compact(slices.Sorted(slices.Values(*list)))
	}
	return r
}

// listed describes the patients of a sorted request.
func (r Request) listed() patientList {
	if len(r.Patients) == 0 {
		return patientList{}
	}
	sum := sha256.Sum256([]byte(strings.Join(r.Patients, "\n") + "\n"))
	return patientList{len(r.Patients), hex.EncodeToString(sum[:])}
}

// sameAs reports whether two sorted requests are for the same data, apart from their patients. A folder of an earlier
// version has no level.
func (r Request) sameAs(other Request) bool {
	return cmp.Or(r.Level, export.GroupLevel) == cmp.Or(other.Level, export.GroupLevel) && r.Group == other.Group &&
		r.Since == other.Since && r.Until == other.Until && r.Associated == other.Associated &&
		r.OrganizeBy == other.OrganizeBy && r.Lenient == other.Lenient && slices.Equal(r.Types, other.Types) &&
		slices.Equal(r.Elements, other.Elements) && slices.Equal(r.TypeFilters, other.TypeFilters)
}

// parameter is a parameter of a kick-off, with the type of its value in a Parameters resource (P-40).
type parameter struct {
	Name      string     `json:"name"`
	String    string     `json:"valueString,omitempty"`
	Instant   string     `json:"valueInstant,omitempty"`
	Reference *reference `json:"valueReference,omitempty"`
}

type reference struct {
	Reference string `json:"reference"`
}

func (r Request) parameters() []parameter {
	var all []parameter
	if len(r.Types) > 0 {
		all = append(all, parameter{Name: "_type", String: strings.Join(r.Types, ",")})
	}
	if r.Since != "" {
		all = append(all, parameter{Name: "_since", Instant: r.Since})
	}
	if r.Until != "" {
		all = append(all, parameter{Name: "_until", Instant: r.Until})
	}
	if len(r.Elements) > 0 {
		all = append(all, parameter{Name: "_elements", String: strings.Join(r.Elements, ",")})
	}
	for _, filter := range r.TypeFilters { // a comma may be part of a query (P-32)
		all = append(all, parameter{Name: "_typeFilter", String: filter})
	}
	if r.Associated != "" {
		all = append(all, parameter{Name: "includeAssociatedData", String: string(r.Associated)})
	}
	if r.OrganizeBy != "" {
		all = append(all, parameter{Name: "organizeOutputBy", String: r.OrganizeBy})
	}
	for _, id := range r.Patients {
		all = append(all, parameter{Name: "patient", Reference: &reference{"Patient/" + id}})
	}
	return all
}

// kickOffRequest is the HTTP request of a kick-off.
type kickOffRequest struct {
	method string
	target *url.URL
	header http.Header
	body   []byte // nil: none
}

// kickOff returns the HTTP request at the base URL, without the preference for an asynchronous response.
func (r Request) kickOff(base *url.URL) (k kickOffRequest, err error) {
	k = kickOffRequest{method: http.MethodGet, header: http.Header{"Accept": {"application/fhir+json"}}}
	switch r.Level {
	case export.SystemLevel:
		k.target = base.JoinPath("$export")
	case export.PatientLevel:
		k.target = base.JoinPath("Patient", "$export")
	case export.GroupLevel, "":
		k.target = base.JoinPath("Group", r.Group, "$export")
	default:
		return k, fmt.Errorf("unknown level %q", r.Level)
	}
	all := r.parameters()
	if !r.Post && len(r.Patients) == 0 {
		var query []string
		for _, one := range all {
			query = append(query, one.Name+"="+url.QueryEscape(one.String+one.Instant))
		}
		k.target.RawQuery = strings.Join(query, "&")
		return k, nil
	}
	k.method = http.MethodPost
	k.header.Set("Content-Type", "application/fhir+json")
	k.body, err = json.Marshal(struct {
		ResourceType string      `json:"resourceType"`
		Parameter    []parameter `json:"parameter,omitempty"` // FHIR has no empty arrays
	}{"Parameters", all})
	if err != nil {
		return k, fmt.Errorf("encode the parameters: %w", err)
	}
	return k, nil
}

// prefer returns the Prefer header; "" for none.
func (r Request) prefer(async bool) string {
	var all []string
	if async {
		all = append(all, "respond-async")
	}
	if r.Lenient {
		all = append(all, "handling=lenient")
	}
	return strings.Join(all, ", ")
}
