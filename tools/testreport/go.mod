module github.com/sluice-fhir/sluice/tools/testreport

go 1.26.0
