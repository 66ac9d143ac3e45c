package directory

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// GrantEntry is one owner's grant as an operator writes it (docs/access.md).
type GrantEntry struct {
	Owner    export.Owner
	Types    NameList // resource types
	Groups   NameList // group ids
	Patients NameList // patient ids
	Levels   Levels   // nil: the group level alone
}

// NameList selects its names, or with All every name except them. The zero NameList selects nothing.
type NameList struct {
	All   bool
	Names []string
}

// Selection returns the set that the list selects.
func (l NameList) Selection() Selection {
	if l.All {
		return AllBut(l.Names...)
	}
	return Only(l.Names...)
}

// Grant returns the grant of the entry, without Few.
func (e GrantEntry) Grant() Grant {
	return Grant{Types: e.Types.Selection(), Groups: e.Groups.Selection(), Levels: e.Levels}
}

// CheckType returns an error unless the name is that of a resource type. The error quotes only what may be one.
func CheckType(name string) error {
	if fhir.IsType(name) {
		return nil
	}
	const most = 40 // letters
	notLetter := func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsLetter(r) }
	if len(name) > most || strings.ContainsFunc(name, notLetter) {
		return errors.New("is not a resource type of R4")
	}
	for _, typ := range fhir.ExportableTypes() {
		if strings.EqualFold(name, typ) || strings.EqualFold(name, typ+"s") {
			return fmt.Errorf("is not a resource type of R4: %q (did you mean %s?)", name, typ)
		}
	}
	return fmt.Errorf("is not a resource type of R4: %q", name)
}

// CheckID returns an error unless the name has the form of an id. The error does not quote it: it may be that of a patient.
func CheckID(name string) error {
	if fhir.IsID(name) {
		return nil
	}
	return errors.New("is not a FHIR id")
}

// CheckLevel returns an error unless the name is that of a level of export.
func CheckLevel(name string) error {
	if slices.Contains(export.Levels(), export.Level(name)) {
		return nil
	}
	return errors.New("is not a level: group, patient or system")
}

var errNoLevels = errors.New("levels is empty; without levels the grant allows the group level")

// ParseLevels returns the levels with the names. A list without names is an error.
func ParseLevels(names []string) (Levels, error) {
	if len(names) == 0 {
		return nil, errNoLevels
	}
	levels := make(Levels, len(names))
	for i, name := range names {
		if err := CheckLevel(name); err != nil {
			return nil, fmt.Errorf("number %d of levels %w", i+1, err)
		}
		levels[i] = export.Level(name)
	}
	return levels, nil
}

// Names returns the names of the levels that are allowed, in the order of export.Levels.
func (l Levels) Names() (names []string) {
	for _, level := range export.Levels() {
		if l.Has(level) {
			names = append(names, string(level))
		}
	}
	return names
}

// Validate returns an error for a name that is not valid in an entry.
func (e GrantEntry) Validate() error {
	for key, name := range map[string]string{"issuer": e.Owner.Issuer, "subject": e.Owner.Subject} {
		if !IsStorable(name) {
			return fmt.Errorf("the %s is empty or not valid text", key)
		}
	}
	for _, list := range []struct {
		key   string
		names []string
		check func(string) error
	}{
		{"types", e.Types.Names, CheckType}, {"groups", e.Groups.Names, CheckID}, {"patients", e.Patients.Names, CheckID},
	} {
		for i, name := range list.names {
			if err := list.check(name); err != nil {
				return fmt.Errorf("number %d of %s %w", i+1, list.key, err)
			}
		}
	}
	if e.Levels == nil {
		return nil
	}
	names := make([]string, len(e.Levels))
	for i, level := range e.Levels {
		names[i] = string(level)
	}
	_, err := ParseLevels(names)
	return err
}

// IsStorable reports whether an entry can have this name as issuer or subject.
func IsStorable(name string) bool { return name != "" && IsText(name) }

// IsText reports whether a database can store the text.
func IsText(text string) bool { return utf8.ValidString(text) && !strings.Contains(text, "\x00") }
