// Package grants has what an operator writes about who may export what: entries, and the YAML form that holds a list of
// them (docs/access.md). Errors never hold a patient id.
package grants

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Entry is one owner's grant, spelled out.
type Entry struct {
	Owner    export.Owner
	Types    List // resource types
	Groups   List // group ids
	Patients List // patient ids
}

// List is the names, or with All everything but the names. The zero List selects nothing.
type List struct {
	All   bool
	Names []string
}

// Selection is what the list selects.
func (l List) Selection() directory.Selection {
	if l.All {
		return directory.AllBut(l.Names...)
	}
	return directory.Only(l.Names...)
}

// Grant is what the entry allows.
func (e Entry) Grant() directory.Grant {
	return directory.Grant{
		Types: e.Types.Selection(), Groups: e.Groups.Selection(), Patients: e.Patients.Selection(),
	}
}

const (
	aType = "a resource type of R4"
	anID  = "a FHIR id"
)

// Validate names the first thing in the entry that no entry can hold.
func (e Entry) Validate() error {
	for key, name := range map[string]string{"issuer": e.Owner.Issuer, "subject": e.Owner.Subject} {
		if !Storable(name) {
			return fmt.Errorf("the %s is empty or not valid text", key)
		}
	}
	for _, list := range []struct {
		key   string
		names []string
		what  string
		holds func(string) bool
	}{
		{"types", e.Types.Names, aType, fhir.IsType},
		{"groups", e.Groups.Names, anID, fhir.IsID[string]},
		{"patients", e.Patients.Names, anID, fhir.IsID[string]},
	} {
		for i, name := range list.names {
			if !list.holds(name) {
				return fmt.Errorf("number %d of %s is not %s", i+1, list.key, list.what)
			}
		}
	}
	return nil
}

// Storable reports whether there can be an entry for an issuer or subject of this name.
func Storable(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.Contains(name, "\x00")
}
