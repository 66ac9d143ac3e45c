package command

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// requestFlags say what to export.
type requestFlags struct {
	bulkclient.Request
	level        string
	associated   string
	patientsFile string
}

var levels = func() (names []string) {
	for _, level := range export.Levels() {
		names = append(names, string(level))
	}
	return names
}()

// organizable is the type by which an export can be organized.
const organizable = "Patient"

var associated = []string{string(export.LatestProvenance), string(export.RelevantProvenance)}

// add adds the flags to a command that has --since-last, and --status-url, which excludes them: it makes no kick-off.
func (r *requestFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.level, "level", string(export.GroupLevel),
		"whose data: group, patient (every patient that you may see) or system (also what is about no patient)")
	f.StringVar(&r.Group, "group", "", "id of the group")
	f.StringSliceVar(&r.Types, "type", nil, "resource types, separated by commas (default: all permitted types)")
	f.StringArrayVar(&r.TypeFilters, "type-filter", nil,
		"query that the resources of a type must match, such as Observation?status=final; each repeat is an alternative")
	f.StringSliceVar(&r.Elements, "elements", nil, "root elements to export, separated by commas, such as id,Patient.name")
	f.StringVar(&r.Since, "since", "", "only what changed after this instant, such as 2026-01-31T00:00:00Z")
	f.StringVar(&r.Until, "until", "", "only what changed before this instant")
	f.StringVar(&r.associated, "include-associated-data", "", "which Provenance: "+strings.Join(associated, " or "))
	f.StringVar(&r.OrganizeBy, "organize-by", "", "organize the files by the resources of this type: Patient")
	f.StringVar(&r.patientsFile, "patients-file", "",
		"file with the patients to export, one id or Patient/id a line; implies --post")
	f.BoolVar(&r.Post, "post", false, "send the parameters in the body of a POST instead of the URL")
	f.BoolVar(&r.Lenient, "lenient", false, "let the server ignore parameters that it does not support; it reports them")
	for _, flag := range []string{
		"level", "group", "type", "type-filter", "elements", "since", "until", "since-last", "include-associated-data",
		"organize-by", "patients-file", "post", "lenient",
	} {
		cmd.MarkFlagsMutuallyExclusive(flag, "status-url")
	}
	for _, flag := range []string{"since", "until", "organize-by"} { // its changes do not tell what a whole export has
		cmd.MarkFlagsMutuallyExclusive(flag, "since-last")
	}
	completes := func(flag string, values ...string) {
		defined(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
	}
	completes("level", levels...)
	completes("include-associated-data", associated...)
	completes("organize-by", organizable)
	defined(cmd.RegisterFlagCompletionFunc("type", completeList(fhir.StoredTypes())))
}

// check validates the flags of a kick-off, and reads the file of patients.
func (r *requestFlags) check() error {
	r.Level, r.Associated = export.Level(r.level), export.Associated(r.associated)
	switch {
	case !slices.Contains(levels, r.level):
		return usage("--level must be group, patient or system, not %q%s", r.level, didYouMean(r.level, levels))
	case r.Level == export.GroupLevel && r.Group == "":
		return usage("--group, --status-url, --level patient or --level system is required")
	case r.Level != export.GroupLevel && r.Group != "":
		return usage("--group is not possible with --level %s", r.level)
	case r.Group != "" && !fhir.IsID(r.Group):
		return usage("--group %q is not a FHIR id", r.Group)
	case r.Level == export.SystemLevel && r.patientsFile != "":
		return usage("--patients-file is not possible with --level system")
	}
	for _, typ := range r.Types {
		if !fhir.IsType(typ) {
			return usage("--type: %q is not a resource type of FHIR R4%s", typ, didYouMean(typ, fhir.StoredTypes()))
		}
	}
	for _, filter := range r.TypeFilters { // a query may have a person's data: it is not repeated
		if typ, query, found := strings.Cut(filter, "?"); !found || query == "" || !fhir.IsType(typ) {
			return usage("--type-filter must be a resource type and a query, such as Observation?status=final")
		}
	}
	for _, element := range r.Elements {
		if strings.TrimSpace(element) == "" {
			return usage("--elements has an empty name")
		}
	}
	for flag, instant := range map[string]string{"since": r.Since, "until": r.Until} {
		if _, err := time.Parse(time.RFC3339Nano, instant); err != nil && instant != "" {
			return usage("--%s must be an instant with a time zone, such as 2026-01-31T00:00:00Z, not %q", flag, instant)
		}
	}
	if r.associated != "" && !slices.Contains(associated, r.associated) {
		return usage("--include-associated-data must be %s, not %q%s", strings.Join(associated, " or "), r.associated,
			didYouMean(r.associated, associated))
	}
	if r.OrganizeBy != "" && r.OrganizeBy != organizable {
		return usage("--organize-by must be %s, not %q", organizable, r.OrganizeBy)
	}
	if r.patientsFile == "" {
		return nil
	}
	var err error
	r.Patients, err = readPatients(r.patientsFile)
	return err
}

// readPatients reads a file with one patient id or Patient/id a line. An empty file is an error: the export would not be
// limited (pitfall 1).
func readPatients(name string) (ids []string, err error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--patients-file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		id := strings.TrimPrefix(strings.TrimSpace(lines.Text()), "Patient/")
		if id == "" {
			continue
		}
		if !fhir.IsID(id) {
			return nil, usage("--patients-file: line %d is neither a FHIR id nor Patient/ and one", n)
		}
		ids = append(ids, id)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("--patients-file: %w", err)
	}
	if len(ids) == 0 {
		return nil, usage("--patients-file has no patient")
	}
	return ids, nil
}
