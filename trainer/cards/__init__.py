"""Cards of students: a README.md in the format of the Hugging Face hub, made from the manifests of all stages."""
